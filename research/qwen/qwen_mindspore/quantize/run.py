"""One run of quantization: from a checkpoint, by way of OUT.part with its finished layers, to the packed checkpoint."""
import contextlib
import fcntl
import json
import math
import shutil

import numpy as np

from qwen_mindspore.checkpoint.convert import save_hf
from qwen_mindspore.checkpoint.files import read_sidecars
from qwen_mindspore.checkpoint.formats import ITEM_SIZE
from qwen_mindspore.checkpoint.names import Piece, hf_to_ms, linears
from qwen_mindspore.checkpoint.packing import EMBEDDING, HEAD, LAYERS, Quantization
from qwen_mindspore.checkpoint.save import check_output, save
from qwen_mindspore.common.files import check_disk, read_json, to_json
from qwen_mindspore.common.progress import say
from qwen_mindspore.quantize.layers import Run, Source, WithParts
from qwen_mindspore.text.files import encode_texts, read_texts

__all__ = ["quantize"]


def quantize(args):
    """
    Quantize a checkpoint.

    Args:
        args (argparse.Namespace): The options of scripts/quantize.py.

    Returns:
        Path of what was written: args.output.

    Raises:
        ValueError: The checkpoint, the text or the options don't fit each other.
        OSError: A file is missing or in the way, or the disk is full.
    """
    source = Source(args.load_checkpoint)
    settings = make_settings(args, source)
    config = source.config | {"quantization": describe(args, settings)}
    if args.format == "gptq":
        check_gptq_shapes(source.config, settings)
    sidecars = read_sidecars(source.folder) | {"config.json": to_json(config)}
    check_output(source, args.output, {} if args.format == "gptq" else sidecars, args.overwrite)
    samples = read_samples(args, source) if args.method == "gptq" else None
    folder = args.output.with_name(args.output.name + ".part")
    run = Run(source, settings, folder, samples, args.damp)
    check_disk(folder, needed_bytes(source, config, samples))
    with working_folder(folder, run.fingerprint()):
        run.make_parts()
        finished = WithParts(source, run.parts())
        if args.format == "gptq":
            save_hf(finished, config, args.output, sidecars, overwrite=args.overwrite)
        else:
            tensors = {name: tensor._replace(pieces=(Piece(name, 0, tensor.shape[0]),))
                       for name, tensor in hf_to_ms(config).items()}
            save(finished, tensors, args.output, sidecars, overwrite=args.overwrite)
    shutil.rmtree(folder)
    return args.output


def make_settings(args, source):
    """The Quantization that the options ask for; ValueError where the model can't have it."""
    if source.family.sizes(source.config).tied and (args.quantize_head or args.quantize_embedding):
        raise ValueError("--quantize_head, --quantize_embedding: in this model the two are one, which stays as it is")
    quantized = [LAYERS] + [HEAD] * args.quantize_head + [EMBEDDING] * args.quantize_embedding
    return Quantization(args.bits, args.group_size, args.method, args.desc_act, args.sym, tuple(quantized))


def describe(args, settings):
    """The `quantization` of the config.json to write, with what AutoGPTQ's has beside our own."""
    if settings.quant_method == "rtn":
        return settings.to_dict()
    return settings.to_dict() | {"damp_percent": args.damp, "static_groups": not args.desc_act}


def check_gptq_shapes(config, settings):
    """ValueError where loaders of AutoGPTQ's format refuse the sizes of a linear: to them the last group is whole."""
    for names, _, inputs in linears(config).values():
        if settings.group_size > 0 and inputs % settings.group_size and settings.covers(names[0]):
            raise ValueError(f"--format gptq: {names[0]} has {inputs} inputs, no multiple of --group_size "
                             f"{settings.group_size}, which loaders of this format want: choose a divisor")


def read_samples(args, source):
    """
    The calibration text in pieces, [samples, length] int32, evenly spread over the text.

    Raises:
        ValueError: The text is shorter than one piece, or a piece longer than the model was trained with.
    """
    trained = source.config["seq_length"]
    length = args.length or min(2048, trained)
    if length > trained:
        raise ValueError(f"--length {length}: the model was trained with {trained} tokens")
    ids = encode_texts(read_tokenizer(source.folder), read_texts(args.data))
    pieces = ids[:len(ids) // length * length].reshape(-1, length)
    if not len(pieces):
        raise ValueError(f"--data {args.data}: {len(ids)} tokens, less than a piece of {length}: give more text, or a "
                         "smaller --length")
    if ids.max() >= source.config["vocab_size"]:
        raise ValueError(f"{source.folder}: the vocabulary gives ids up to {ids.max()}, config.json's vocab_size is "
                         f"{source.config['vocab_size']}: do the two belong together?")
    chosen = [number * len(pieces) // args.samples for number in range(args.samples)]
    if len(pieces) <= args.samples:
        chosen = range(len(pieces))
    say("quantize", f"{len(chosen)} pieces of {length} tokens from {args.data}")
    return np.ascontiguousarray(pieces[list(chosen)])


def read_tokenizer(folder):
    """The tokenizer of the vocabulary in a folder, else of the official one."""
    from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file
    return QwenTokenizer(find_vocab_file(None, beside=folder))


def needed_bytes(source, config, samples):
    """What the disk must hold: the parts and the result, and for gptq the activations."""
    packed = rest = 0
    for name, tensor in hf_to_ms(config).items():
        if tensor.dtype or name.endswith(".scales"):
            packed += math.prod(tensor.shape) * ITEM_SIZE.get(tensor.dtype, 2)
        else:
            rest += source.tensors[name].nbytes
    sizes = source.family.sizes(config)
    width = sizes.hidden * 2 + sizes.query
    return 2 * packed + rest + (0 if samples is None else samples.size * width * 4)


@contextlib.contextmanager
def working_folder(folder, fingerprint):
    """
    OUT.part, which this process has for itself.

    Raises:
        ValueError: It has parts that were made from something else.
        OSError: Another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is quantizing into it") from None
        settings = folder / "settings.json"
        if settings.exists():
            found = read_json(settings)
            differing = [key for key in fingerprint if found.get(key) != json.loads(json.dumps(fingerprint[key]))]
            if differing:
                raise ValueError(f"{folder} has parts made with another {', '.join(differing)}: remove it to start "
                                 "anew, or choose another --output")
        else:
            settings.with_suffix(".tmp").write_bytes(to_json(fingerprint))
            settings.with_suffix(".tmp").replace(settings)
        yield
