"""What people give in place of a checkpoint of Qwen, by its files and names, and what to do: for messages."""
import re

from qwen_mindspore.common.text import shown
from qwen_mindspore.families import FAMILIES, family_of

__all__ = ["check_model", "of_folder", "of_names", "wrapper_of"]

LORA = "a LoRA adapter, not a model: merge it into its base model first (peft's merge_and_unload, then save_pretrained)"
SPLIT = ("a checkpoint that is split over devices: merge it into one first (ms.rank_list_for_transform and "
         "ms.transform_checkpoint_by_rank, or MindFormers' transform_checkpoint)")
OTHER_SIDE = {"hf": "these are Hugging Face names: convert it with convert/convert_weight.py first",
              "ms": "these are MindSpore names: convert it with convert/convert_reversed.py first"}
LORA_NAMES = re.compile(r"(^|[._])lora_|\.base_layer\.|\.modules_to_save\.")

# What a wrapper around a whole model puts before the names of its tensors: torch's DataParallel and compile, DeepSpeed,
# Lightning, PEFT, MindSpore's training cells.
WRAPPERS = re.compile(r"(?:(?:module|model|base_model|_orig_mod|_forward_module|_?network|_?backbone)\.)*")

# Keys of a config.json of model_type "qwen" that is more than a text model.
MULTIMODAL = {"visual": "a Qwen-VL, which reads images", "audio": "a Qwen-Audio, which hears"}


def check_model(config, path):
    """
    The Family of a config.json.

    Raises:
        ValueError: It describes another model.
    """
    try:
        family = family_of(config, path)
    except ValueError as error:
        raise ValueError(f"{error}: give the folder of a model that this project can build, Qwen-7B-Chat "
                         "say") from None
    for key, title in MULTIMODAL.items():
        if config.get(key) is not None:
            raise ValueError(f"{path}: {key}: this is {title}: give a text model, Qwen-7B-Chat say")
    return family


def of_folder(folder):
    """What a folder is in which there is no checkpoint, and what to do; empty where nobody knows."""
    if not folder.is_dir():
        return ""
    if (folder / "adapter_config.json").is_file():
        return LORA
    if folder.name == "blobs" and (folder.parent / "snapshots").is_dir():
        folder = folder.parent
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    ranks = [path for path in inside if re.fullmatch(r"rank_\d+", path.name)]
    if ranks:
        return SPLIT if len(ranks) > 1 else f"what the one device has written is in {ranks[0]}: give that folder"
    if (folder / "snapshots").is_dir():
        return f"a folder of the hub's cache: give {_snapshot(folder)}"
    cached = [path for path in inside if path.name.startswith("models--")]
    if cached:
        return f"the hub's cache of several models: give the folder of one, {_snapshot(cached[0])} say"
    models = [path for path in inside if (path / "config.json").is_file()]
    if models:
        return f"give the folder in it that is meant, {models[0]} say"
    if any(folder.glob("*.gguf")):
        return "a GGUF file is llama.cpp's: give the Hugging Face folder that it was made of"
    return ""


def _snapshot(folder):
    """The newest revision in a folder of the hub's cache, as `huggingface_hub` lays it out."""
    revisions, main = folder / "snapshots", folder / "refs" / "main"
    if main.is_file():
        revision = main.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"\w+", revision) and (revisions / revision).is_dir():
            return revisions / revision
    found = sorted(path for path in revisions.glob("*") if path.is_dir())
    return found[-1] if found else revisions / "REVISION"


def of_names(names, side):
    """
    What a file is whose tensors have these names, where some that are needed are not among them, and what to do; empty
    where nobody knows.

    Args:
        names: The names in the file.
        side (str): Whose names are needed: "hf" or "ms".
    """
    if any(LORA_NAMES.search(name) for name in names):
        return LORA
    if not names:
        return "there is no tensor in it: fetch or make the file again"
    layers = {each: tuple(family.prefix(each, 0) for family in FAMILIES.values()) for each in OTHER_SIDE}
    if any(name.startswith(layers[side]) for name in names):
        return ""
    for other, advice in OTHER_SIDE.items():
        if any(name.startswith(layers[other]) for name in names):
            return advice
    return (f"its tensors have other names, {shown(min(names))} for example: give the model's own weights, as its "
            "state_dict() has them")


def wrapper_of(names):
    """
    What a wrapper has put before the names of a whole model's tensors: "module." of torch's DataParallel, say.

    Returns:
        str, empty where the names are a model's own, or where there are several of such prefixes.
    """
    known = tuple({start for family in FAMILIES.values() for side in ("hf", "ms")
                   for start in (family.prefix(side, "{}").partition("{}")[0],
                                 *(getattr(module, side) + "." for module in (*family.before, *family.after)))})
    found = {prefix for name in names for prefix in [_prefix(name, known)] if prefix is not None}
    return found.pop() if len(found) == 1 else ""


def _prefix(name, known):
    """The shortest prefix of wrappers behind which a name is one that is known; None where it is none."""
    longest, start = WRAPPERS.match(name).end(), 0
    while not name.startswith(known, start):
        start = name.find(".", start) + 1
        if not 0 < start <= longest:
            return None
    return name[:start]
