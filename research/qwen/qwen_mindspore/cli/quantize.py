"""
Quantize a Qwen to 4 or 8 bits, on the CPU:

    python scripts/quantize.py --load_checkpoint C --bits 4 --group_size 128 --data calibration.txt --output OUT

`gptq` runs a calibration text through the model and chooses the weights of each layer so that the layer's outputs stay
as they were; `rtn` rounds to nearest and needs no text. One layer is in memory at a time. Finished layers are kept in
OUT.part, and a run that was interrupted resumes there.
"""
import argparse
from pathlib import Path

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import add_model_options, positive_int, settle_checkpoint


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--load_checkpoint", type=Path, metavar="C",
                       help="a MindSpore folder, .ckpt or .safetensors, or a Hugging Face folder")
    add_model_options(parser, which)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT",
                        help="one file if it ends in .ckpt or .safetensors, else a folder")
    parser.add_argument("--format", choices=("mindspore", "gptq"), default="mindspore",
                        help="gptq: a Hugging Face folder as AutoGPTQ writes it (default: mindspore)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older checkpoint")
    how = parser.add_argument_group("how to quantize")
    how.add_argument("--bits", type=int, choices=(4, 8), default=4, help="(default: 4)")
    how.add_argument("--group_size", type=int, default=128, metavar="N",
                     help="inputs that share a scale; -1: all of an output's (default: 128)")
    how.add_argument("--method", choices=("gptq", "rtn"), default="gptq", help="(default: gptq)")
    how.add_argument("--asym", dest="sym", action="store_false", help="fit a zero point for each group as well")
    how.add_argument("--sym", action="store_true", help="zero points in the middle of the levels (default)")
    how.add_argument("--quantize_head", action="store_true", help="the lm_head as well")
    how.add_argument("--quantize_embedding", action="store_true", help="the embedding as well, rounded to nearest")
    data = parser.add_argument_group("gptq")
    data.add_argument("--data", type=Path, metavar="FILE",
                      help='the calibration text: .jsonl with {"text": ...} lines, or plain text')
    data.add_argument("--samples", type=positive_int, default=128, metavar="N",
                      help="maximum number of pieces of the text to calibrate with (default: 128)")
    data.add_argument("--length", type=positive_int, metavar="N",
                      help="tokens of a piece (default: 2048, or what the model was trained with)")
    data.add_argument("--desc_act", action="store_true",
                      help="groups of inputs of similar size; the checkpoint then holds their order")
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


def main(argv=None):
    """The command: the path that was written is all that it prints on standard output. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        from qwen_mindspore.quantize.run import quantize

        settle_checkpoint(args)
        print(quantize(args), file=answers)

    return run_command("quantize", work, interrupted="interrupted; the same command resumes where it stopped")
