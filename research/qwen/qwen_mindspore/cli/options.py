"""Options that several commands have, and the values of options."""
import argparse

from qwen_mindspore.checkpoint.formats import FLOATS
from qwen_mindspore.checkpoint.hub import HUBS
from qwen_mindspore.common.files import configs_folder
from qwen_mindspore.common.kinds import FLAG
from qwen_mindspore.common.text import argument_text
from qwen_mindspore.generate.build import load_config

__all__ = ["add_common_options", "add_generation_options", "add_model_options", "add_output_options", "boolean",
           "config_of", "generation_options", "positive_int", "positive_ints", "settle_checkpoint", "settle_model",
           "utf8"]


def add_common_options(parser, config):
    """
    Which model, and where it runs.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
        config (str): The YAML of configs/ that is taken where none is given.
    """
    parser.set_defaults(is_config_given=False)
    parser.add_argument("--config", default=str(configs_folder() / config), action=_Config,
                        help=f"a YAML, see configs/; default: {config}, or, with --model, what its config.json says")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load_checkpoint", default="",
                       help="a .ckpt or .safetensors file, or a folder of them; default: what the YAML says")
    add_model_options(parser, which)
    parser.add_argument("--device_target", default=None, choices=["auto", "CPU", "Ascend"],
                        help="auto: an NPU if there is one; default: what the YAML says")
    parser.add_argument("--device_id", type=int, default=None)
    parser.add_argument("--verbose", action="store_true", help="MindFormers' whole log on standard error")


class _Config(argparse.Action):
    """Stores the value, and that there was one."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.config, namespace.is_config_given = values, True


def add_model_options(parser, which):
    """
    A model by its name; `settle_model` reads it back.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
        which: A group of it of options that exclude each other; gets --model.
    """
    which.add_argument("--model", metavar="MODEL",
                       help="instead of --load_checkpoint: a name, like Qwen/Qwen-1_8B-Chat, which is fetched and "
                            "converted once, see qwen-ms cache; or a folder, of Hugging Face or converted")
    parser.add_argument("--hub", choices=list(HUBS), help="where a name is looked up; default: huggingface")
    parser.add_argument("--revision", metavar="R", help="of a name: a branch, a tag or a commit; default: the latest "
                                                        "when it is fetched")


def settle_model(args):
    """
    Put the checkpoint of --model, and its config unless there is a --config, where the other options have theirs. Every
    command does so before it imports what takes long: a name that is misspelt is told at once.

    Raises:
        ValueError, OSError: See `generate.by_name.find_model`.
    """
    _check_model_options(args)
    if args.model is not None:
        from qwen_mindspore.generate.by_name import find_model

        config, checkpoint = find_model(args.model, args.revision, args.hub)
        args.load_checkpoint = str(checkpoint)
        args.config = args.config if args.is_config_given else str(config)


def settle_checkpoint(args):
    """
    Put the checkpoint of --model, a folder as it is, where --load_checkpoint has its.

    Raises:
        ValueError, OSError: See `checkpoint.by_name.find_checkpoint`.
    """
    _check_model_options(args)
    if args.model is not None:
        from qwen_mindspore.checkpoint.by_name import find_checkpoint

        args.load_checkpoint = find_checkpoint(args.model, args.revision, args.hub, convert=False).checkpoint


def _check_model_options(args):
    """ValueError where an option that goes with a name stands alone."""
    for option in ("hub", "revision"):
        if getattr(args, option) and args.model is None:
            raise ValueError(f"--{option} goes with --model NAME")


def add_output_options(parser):
    """How a checkpoint is written."""
    parser.add_argument("--dtype", choices=FLOATS, help="type of the weights to write (default: as stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older checkpoint")


def config_of(args):
    """The config that the options of `add_common_options` name, --model settled: see `generate.build.load_config`."""
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
    group.add_argument("--min_new_tokens", type=int, metavar="N", help="before so many tokens nothing ends an answer")
    group.add_argument("--do_sample", type=boolean, metavar="BOOL",
                       help="sample tokens instead of taking the most likely one")
    group.add_argument("--temperature", type=float, metavar="X", help="above 1 makes unlikely tokens more likely")
    group.add_argument("--top_k", type=int, metavar="N", help="sample from the N most likely tokens; 0: all")
    group.add_argument("--top_p", type=float, metavar="X",
                       help="sample from the fewest most likely tokens whose probabilities reach X; 1: all")
    group.add_argument("--min_p", type=float, metavar="X",
                       help="sample from the tokens at least X times as likely as the likeliest; 0: all")
    group.add_argument("--repetition_penalty", type=float, metavar="X",
                       help="above 1 discourages tokens that occurred before")
    group.add_argument("--presence_penalty", type=float, metavar="X",
                       help="above 0 discourages tokens that are in the answer, up to 2")
    group.add_argument("--frequency_penalty", type=float, metavar="X",
                       help="above 0 discourages tokens the more, the oftener they are in the answer, up to 2")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--stop_words", type=utf8, nargs="+", metavar="TEXT",
                       help="strings that end an answer; they are cut off")
    group.add_argument("--max_window_size", type=positive_int, metavar="N",
                       help="the most tokens of a conversation that are kept")
    group.add_argument("--chat_format", type=str.lower, choices=["chatml", "raw"],
                       help="raw: continue a text, as base models do; chatml: answer a question")


def generation_options(args):
    """dict, the settings that the options of `add_generation_options` gave, None where they didn't."""
    return {name: getattr(args, name) for name in (
        "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "seed", "stop_words", "max_window_size", "chat_format")}


def utf8(text):
    """A command line's text, for argparse."""
    try:
        return argument_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_int(text):
    """A command line's whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return int(text)


def boolean(text):
    """A command line's true or false, for argparse."""
    try:
        return FLAG.read(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text}") from None


def positive_ints(text):
    """A command line's positive numbers, with commas between them, for argparse."""
    return [positive_int(part) for part in text.split(",")]
