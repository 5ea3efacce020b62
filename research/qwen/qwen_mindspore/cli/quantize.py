"""
Quantise a Qwen to 4 or 8 bits, on the CPU:

    python scripts/quantize.py --load_checkpoint C --bits 4 --group_size 128 --data calibration.txt --output OUT

`checkpoint.gptq` runs a calibration text through the model and chooses the weights of each layer so that the layer's outputs stay
as they were; `rtn` rounds to nearest and needs no text. One layer is in memory at a time. Finished layers are kept in
OUT.part, and a run that was interrupted goes on from there.
"""
import argparse
import contextlib
import fcntl
import json
import math
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "convert"), str(ROOT / "research/qwen")]

import numpy as np  # noqa: E402

from qwen_mindspore.checkpoint import files as checkpoint_io  # noqa: E402
from qwen_mindspore.cli.export import save_hf  # noqa: E402
from qwen_mindspore.checkpoint.names import Piece, hf_to_ms, linears  # noqa: E402
from qwen_mindspore.quantize.layers import HEAD, Run, Source, WithParts  # noqa: E402
from qwen_mindspore.checkpoint.packing import EMBEDDING, LAYERS, Quantization  # noqa: E402
from qwen_mindspore.cli.options import positive_int, stdout_for_answers  # noqa: E402
from qwen_mindspore.text.files import encode_texts, read_texts  # noqa: E402


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load_checkpoint", type=Path, required=True, metavar="C",
                        help="a MindSpore folder, .ckpt or .safetensors, or a Hugging Face folder")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT",
                        help="one file if it ends in .ckpt or .safetensors, else a folder")
    parser.add_argument("--format", choices=("mindspore", "gptq"), default="mindspore",
                        help="gptq: a Hugging Face folder as AutoGPTQ writes it (default: mindspore)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older checkpoint")
    how = parser.add_argument_group("how to quantise")
    how.add_argument("--bits", type=int, choices=(4, 8), default=4, help="(default: 4)")
    how.add_argument("--group_size", type=int, default=128, metavar="N",
                     help="inputs that share a scale; -1: all of an output's (default: 128)")
    how.add_argument("--method", choices=("gptq", "rtn"), default="gptq", help="(default: gptq)")
    how.add_argument("--asym", dest="sym", action="store_false", help="fit a zero for each group, too")
    how.add_argument("--sym", action="store_true", help="zeros in the middle of the levels (default)")
    how.add_argument("--quantize_head", action="store_true", help="the lm_head as well")
    how.add_argument("--quantize_embedding", action="store_true", help="the embedding as well, rounded to nearest")
    data = parser.add_argument_group("gptq")
    data.add_argument("--data", type=Path, metavar="FILE",
                      help='the calibration text: .jsonl with {"text": ...} lines, or plain text')
    data.add_argument("--samples", type=positive_int, default=128, metavar="N",
                      help="the most pieces of the text to calibrate with (default: 128)")
    data.add_argument("--length", type=positive_int, metavar="N",
                      help="tokens of a piece (default: 2048, or what the model was trained with)")
    data.add_argument("--desc_act", action="store_true",
                      help="groups of inputs of like size; the checkpoint then holds their order")
    data.add_argument("--damp", type=float, default=0.01, metavar="X", help="dampening (default: 0.01)")
    args = parser.parse_args(argv)
    problem = _contradiction(args)
    if problem:
        parser.error(problem)
    return args


def _contradiction(args):
    """What is wrong with the options together, or None."""
    if args.group_size != -1 and args.group_size < 1:
        return f"--group_size: expected a positive number or -1, found {args.group_size}"
    if args.method == "gptq" and not args.data:
        return ("--method gptq calibrates with a text: give --data FILE, some hundred kB of what the model will be "
                "used for, or --method rtn")
    if args.method == "rtn" and (args.data or args.desc_act):
        return f"{'--data' if args.data else '--desc_act'} goes with --method gptq"
    if not 0 < args.damp < 1:
        return f"--damp: expected a number between 0 and 1, found {args.damp:g}"
    if args.format == "gptq" and args.quantize_embedding:
        return "--quantize_embedding: AutoGPTQ's format has no place for it"
    if args.format == "gptq" and args.output.suffix in (".ckpt", ".safetensors"):
        return f"--output {args.output}: --format gptq writes a folder"
    return None


def quantize(args):
    """
    Quantise a checkpoint.

    Args:
        args (argparse.Namespace): See `parse_args`.

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
    sidecars = checkpoint_io.read_sidecars(source.folder) | {"config.json": checkpoint_io.to_json(config)}
    checkpoint_io.check_output(source, args.output, {} if args.format == "gptq" else sidecars, args.overwrite)
    samples = read_samples(args, source) if args.method == "gptq" else None
    folder = args.output.with_name(args.output.name + ".part")
    run = Run(source, settings, folder, samples, args.damp)
    checkpoint_io.check_disk(folder, needed_bytes(source, config, samples))
    with working_folder(folder, run.fingerprint()):
        run.make_parts()
        finished = WithParts(source, run.parts())
        if args.format == "gptq":
            save_hf(finished, config, args.output, sidecars, overwrite=args.overwrite)
        else:
            tensors = {name: tensor._replace(pieces=(Piece(name, 0, tensor.shape[0]),))
                       for name, tensor in hf_to_ms(config).items()}
            checkpoint_io.save(finished, tensors, args.output, sidecars, overwrite=args.overwrite)
    shutil.rmtree(folder)
    return args.output


def make_settings(args, source):
    """The Quantization that the options ask for; ValueError where the model can't have it."""
    if source.config.get("tie_word_embeddings") and (args.quantize_head or args.quantize_embedding):
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
    say(f"{len(chosen)} pieces of {length} tokens from {args.data}")
    return np.ascontiguousarray(pieces[list(chosen)])


def read_tokenizer(folder):
    """The tokenizer of the vocabulary in a folder, else of the official one."""
    from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file
    return QwenTokenizer(find_vocab_file(None, beside=folder))


def needed_bytes(source, config, samples):
    """What the disk must hold: the parts and the result, and for gptq the activations."""
    sizes = {"uint8": 1, "int32": 4}
    packed = rest = 0
    for name, tensor in hf_to_ms(config).items():
        if tensor.dtype or name.endswith(".scales"):
            packed += math.prod(tensor.shape) * sizes.get(tensor.dtype, 2)
        else:
            rest += source.tensors[name].nbytes
    width = config["hidden_size"] * 2 + source.tensors["transformer.layers.0.attention.wo.weight"].shape[1]
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
            raise BlockingIOError(f"{folder}: another process is quantising into it") from None
        settings = folder / "settings.json"
        if settings.exists():
            found = checkpoint_io.read_json(settings)
            differing = [key for key in fingerprint if found.get(key) != json.loads(json.dumps(fingerprint[key]))]
            if differing:
                raise ValueError(f"{folder} has parts made with another {', '.join(differing)}: remove it to start "
                                 "anew, or choose another --output")
        else:
            settings.with_suffix(".tmp").write_bytes(checkpoint_io.to_json(fingerprint))
            settings.with_suffix(".tmp").replace(settings)
        yield


def say(text):
    print(f"quantize: {text}", file=sys.stderr, flush=True)


def main():
    """The command: the path that was written is all that it prints on stdout."""
    args, signals = parse_args(), []

    def interrupt(number, _):
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with stdout_for_answers(verbose=False) as answers:
        try:
            print(quantize(args), file=answers)
        except (KeyboardInterrupt, ValueError, OSError) as error:
            # Native code that is interrupted may raise an error of its own instead.
            message = "interrupted; the same command goes on where it stopped" if signals else error
            sys.exit(f"quantize: {message}")


if __name__ == "__main__":
    main()
