"""Options that several commands have, and the values of options."""
import argparse

from qwen_mindspore.checkpoint.formats import FLOATS
from qwen_mindspore.common.files import configs_folder
from qwen_mindspore.generate.build import load_config

__all__ = ["add_common_options", "add_generation_options", "add_output_options", "boolean", "config_of",
           "generation_options", "positive_int", "positive_ints"]


def add_common_options(parser, config):
    """
    Which model, and where it runs.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
        config (str): The YAML of configs/ that is taken where none is given.
    """
    parser.add_argument("--config", default=str(configs_folder() / config),
                        help=f"a YAML, see configs/; default: {config}")
    parser.add_argument("--load_checkpoint", default="",
                        help="a .ckpt or .safetensors file, or a folder of them; default: what the YAML says")
    parser.add_argument("--device_target", default=None, choices=["auto", "CPU", "Ascend"],
                        help="auto: an NPU if there is one; default: what the YAML says")
    parser.add_argument("--device_id", type=int, default=None)
    parser.add_argument("--verbose", action="store_true", help="MindFormers' whole log on standard error")


def add_output_options(parser):
    """How a checkpoint is written."""
    parser.add_argument("--dtype", choices=FLOATS, help="type of the weights to write (default: as stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older checkpoint")


def config_of(args):
    """The config that the options of `add_common_options` name: see `generate.build.load_config`."""
    return load_config(args.config, args.load_checkpoint, args.device_target, args.device_id)


def add_generation_options(parser):
    """
    How answers are generated; `generation_options` reads them back.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
    """
    group = parser.add_argument_group("generation", "default: what the generation_config.json beside the checkpoint "
                                                    "says, else the YAML")
    group.add_argument("--max_new_tokens", type=positive_int, metavar="N", help="the most tokens of an answer")
    group.add_argument("--do_sample", type=boolean, metavar="BOOL",
                       help="sample tokens instead of taking the most likely one")
    group.add_argument("--temperature", type=float, metavar="X", help="above 1 makes unlikely tokens more likely")
    group.add_argument("--top_k", type=int, metavar="N", help="sample from the N most likely tokens; 0: all")
    group.add_argument("--top_p", type=float, metavar="X",
                       help="sample from the fewest most likely tokens whose probabilities reach X; 1: all")
    group.add_argument("--repetition_penalty", type=float, metavar="X",
                       help="above 1 discourages tokens that occurred before")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--stop_words", nargs="+", metavar="TEXT", help="strings that end an answer; they are cut off")
    group.add_argument("--max_window_size", type=positive_int, metavar="N",
                       help="the most tokens of a conversation that are kept")
    group.add_argument("--chat_format", choices=["chatml", "raw"],
                       help="raw: continue a text, as base models do; chatml: answer a question")


def generation_options(args):
    """dict, the settings that the options of `add_generation_options` gave, None where they didn't."""
    return {name: getattr(args, name) for name in (
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop_words",
        "max_window_size", "chat_format")}


def positive_int(text):
    """A command line's whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return int(text)


def boolean(text):
    """A command line's true or false, for argparse."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text}")
    return text.lower() in ("true", "1")


def positive_ints(text):
    """A command line's positive numbers, with commas between them, for argparse."""
    return [positive_int(part) for part in text.split(",")]
