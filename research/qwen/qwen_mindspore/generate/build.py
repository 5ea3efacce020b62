"""From a YAML to a model that answers: its config, the device, the tokenizer, the weights."""
from pathlib import Path

from qwen_mindspore.checkpoint.files import checkpoint_files
from qwen_mindspore.common.configs import read_model_config
from qwen_mindspore.common.deferred_imports import import_mindformers
from qwen_mindspore.common.files import configs_folder
from qwen_mindspore.common.folders import usable
from qwen_mindspore.common.keys import MODEL
from qwen_mindspore.common.kinds import read_as

__all__ = ["build_config", "build_model", "build_tokenizer", "load_config", "resolve_device", "set_context",
           "size_model"]


def load_config(path, checkpoint="", device_target=None, device_id=None):
    """
    A YAML with what a command line says in it.

    Args:
        path (str): The YAML.
        checkpoint (str): A checkpoint. Default: the one that the YAML names.
        device_target (str): "auto", "CPU" or "Ascend". Default: the YAML's.
        device_id (int): Which NPU. Default: the YAML's.

    Returns:
        MindFormerConfig, whose checkpoint and `context.device_target` are settled.

    Raises:
        FileNotFoundError: No such YAML, or one that it inherits from, or checkpoint.
        ValueError: Not a YAML of a model, see `common.configs.read_model_config`, or no checkpoint is named.
    """
    if not Path(path).is_file():
        problem = "this is a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"--config {path}: {problem}; the shipped ones are in {configs_folder()}")
    content = read_model_config(path)
    checkpoint = (checkpoint or content.get("load_checkpoint")
                  or content["model"]["model_config"].get("checkpoint_name_or_path"))
    if not checkpoint:
        raise ValueError(f"no checkpoint: give --load_checkpoint, or load_checkpoint in {path}")
    checkpoint_files(checkpoint)
    import_mindformers()  # not before what can be told at once has been looked at
    config = _mindformers_config(path, content)
    _check_model(path, config)
    model_config = config.model.model_config
    # The model loads it, not the Trainer, which would answer with random numbers where a weight is missing.
    model_config.checkpoint_name_or_path = str(checkpoint)
    config.load_checkpoint = ""
    config.context.device_target = resolve_device(device_target or config.context.device_target or "auto")
    if device_id is not None:
        config.context.device_id = device_id
    config.output_dir = str(usable(config.output_dir or "./output", "output"))
    config.save_file = str(Path(config.output_dir) / "text_generation_result.txt")
    return config


def _mindformers_config(path, content):
    """What MindFormers makes of a YAML's content."""
    from mindformers.tools.register.config import MindFormerConfig
    from mindformers.tools.register.template import ConfigTemplate
    try:
        ConfigTemplate.apply_template(content)  # as for a YAML that it reads itself
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: {' '.join(map(str, error.args))}") from None
    return MindFormerConfig(**content)


def _check_model(path, config):
    """ValueError, with the YAML's name, where its model can't be built: a misspelt key, sizes that don't fit."""
    from qwen_mindspore.model.config import QwenConfig
    try:
        QwenConfig.from_llama_config(build_config(config))
    except ValueError as error:
        raise ValueError(f"{path}: model_config: {str(error).removeprefix('QwenConfig: ')}") from None


def resolve_device(target):
    """
    "CPU" or "Ascend"; "auto" is Ascend where MindSpore finds an NPU.

    Raises:
        ValueError: Ascend on a machine without one.
    """
    import mindspore as ms
    from mindspore import hal
    has_npu = hal.is_available("Ascend")
    if target == "auto":
        return "Ascend" if has_npu else "CPU"
    if target == "Ascend" and not has_npu:
        raise ValueError(f"device_target Ascend: MindSpore {ms.__version__} finds no NPU here; --device_target CPU or "
                         "auto runs on the CPU")
    return target


def set_context(config):
    """Tell MindSpore of graph mode and the device of a config from `load_config`."""
    import mindspore as ms
    ms.set_context(mode=ms.GRAPH_MODE, device_target=config.context.device_target,
                   device_id=config.context.device_id or 0)
    if config.context.device_target == "Ascend":
        ms.set_context(max_device_memory=config.context.max_device_memory,
                       ascend_config=dict(config.context.ascend_config))


def size_model(args, config):
    """
    Write into a config from `load_config` for how many answers at once the model makes room.

    Args:
        args (argparse.Namespace): With `batch_size`, and `cache_tokens`: how many tokens the key/value cache holds.
            Default: 1024 an answer, and at least `seq_length`.
        config (MindFormerConfig): Gets `batch_size` and `num_blocks`.

    Raises:
        ValueError: Fewer tokens than one answer may have.
    """
    model_config = config.model.model_config
    model_config.batch_size = args.batch_size
    length, block = model_config.seq_length, model_config.block_size or 16
    most = args.batch_size * length
    wanted = args.cache_tokens or max(length, args.batch_size * 1024)
    if wanted < length:
        raise ValueError(f"--cache_tokens: expected at least seq_length, {length}: an answer and its prompt may be "
                         f"that long; found {wanted}")
    model_config.num_blocks = -(-min(wanted, most) // block)


def build_tokenizer(config):
    """
    The YAML's tokenizer, with a vocabulary from where the YAML says, else from beside the checkpoint, else the
    official one; it wraps questions in ChatML where `chat_format` is chatml.

    Raises:
        FileNotFoundError, ValueError: See `QwenTokenizer`; or the vocabulary is not the model's.
    """
    from qwen_mindspore.generate.vocabulary import check_vocabulary
    from qwen_mindspore.text.chatml import ChatMLTokenizer
    from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file
    settings = dict(config.processor.tokenizer)
    model_config = config.model.model_config
    settings["vocab_file"] = find_vocab_file(settings.get("vocab_file"), beside=model_config.checkpoint_name_or_path)
    is_chat = read_as(MODEL["chat_format"], "chat_format", model_config.chat_format) == "chatml"
    tokenizer = ChatMLTokenizer(**settings) if is_chat else QwenTokenizer(**settings)
    model = build_config(config)
    check_vocabulary(tokenizer, model.vocab_size, (model.eos_token_id, model.pad_token_id, model.bos_token_id))
    return tokenizer


def build_config(config):
    """The model's config, a QwenConfig or a LlamaConfig, of a config from `load_config`."""
    from mindformers.models.build_config import build_model_config

    from qwen_mindspore.model import config as qwen_config  # noqa: F401  registered with MindFormers
    return build_model_config(config.model.model_config)


def build_model(config):
    """The model of a config from `load_config`, with its weights, ready to answer. Call `set_context` before."""
    from qwen_mindspore.generate.loop import QwenForCausalLM
    model = QwenForCausalLM(build_config(config))
    model.set_train(False)
    return model
