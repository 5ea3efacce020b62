"""What every program around a Qwen begins with: its common options, the YAML, the device, the tokenizer, the model, and
a standard output that carries answers alone."""
import argparse
import contextlib
import os
import sys
from pathlib import Path

__all__ = ["add_common_options", "add_generation_options", "boolean", "build_config", "build_model", "build_tokenizer",
           "generation_options", "load_config", "positive_int", "resolve_device", "set_context", "stdout_for_answers"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def add_common_options(parser, config):
    """
    Which model, and where it runs.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
        config (str): The YAML of configs/ that is taken where none is given.
    """
    parser.add_argument("--config", default=str(CONFIGS / config), help=f"a YAML, see configs/; default: {config}")
    parser.add_argument("--load_checkpoint", default="",
                        help="a .ckpt or .safetensors file, or a folder of them; default: what the YAML says")
    parser.add_argument("--device_target", default=None, choices=["auto", "CPU", "Ascend"],
                        help="auto: an NPU if there is one; default: what the YAML says")
    parser.add_argument("--device_id", type=int, default=None)
    parser.add_argument("--verbose", action="store_true", help="MindFormers' whole log on standard error")


def add_generation_options(parser):
    """
    How answers are generated; `generation_options` reads them back.

    Args:
        parser (argparse.ArgumentParser): Gets the options.
    """
    group = parser.add_argument_group("generation", "default: what the generation_config.json beside the checkpoint says, "
                                                    "else the YAML")
    group.add_argument("--max_new_tokens", type=positive_int, metavar="N", help="the most tokens of an answer")
    group.add_argument("--do_sample", type=boolean, metavar="BOOL", help="draw tokens instead of taking the likeliest")
    group.add_argument("--temperature", type=float, metavar="X", help="above 1 makes unlikely tokens likelier")
    group.add_argument("--top_k", type=int, metavar="N", help="draw from so many likeliest tokens; 0: all")
    group.add_argument("--top_p", type=float, metavar="X",
                       help="draw from the fewest likeliest tokens that hold so much of the probability; 1: all")
    group.add_argument("--repetition_penalty", type=float, metavar="X", help="above 1 discourages tokens said before")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    group.add_argument("--stop_words", nargs="+", metavar="TEXT", help="texts that end an answer and are cut off it")
    group.add_argument("--max_window_size", type=positive_int, metavar="N",
                       help="the most tokens of a conversation that are kept")
    group.add_argument("--chat_format", choices=["chatml", "raw"],
                       help="raw: a text is continued, as base models do; chatml: a question is answered")


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


def load_config(args):
    """
    The YAML with the command line's settings in it.

    Returns:
        MindFormerConfig, whose checkpoint and `context.device_target` are settled.

    Raises:
        FileNotFoundError, ValueError: No such YAML or checkpoint, or none named.
    """
    from mindformers.tools.register.config import MindFormerConfig

    from qwen_mindspore.model.load import checkpoint_files
    if not Path(args.config).is_file():
        raise FileNotFoundError(f"--config {args.config}: no such file; the shipped ones are in {CONFIGS}")
    config = MindFormerConfig(args.config)
    model_config = config.model.model_config
    checkpoint = args.load_checkpoint or config.load_checkpoint or model_config.checkpoint_name_or_path
    if not checkpoint:
        raise ValueError(f"no checkpoint: give --load_checkpoint, or load_checkpoint in {args.config}")
    checkpoint_files(checkpoint)
    # The model loads it, not the Trainer, which would answer with random numbers where a weight is missing.
    model_config.checkpoint_name_or_path = str(checkpoint)
    config.load_checkpoint = ""
    config.context.device_target = resolve_device(args.device_target or config.context.device_target)
    if args.device_id is not None:
        config.context.device_id = args.device_id
    config.save_file = str(Path(config.output_dir or "./output") / "text_generation_result.txt")
    return config


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


def build_tokenizer(config):
    """
    The YAML's tokenizer, with a vocabulary from where the YAML says, else from beside the checkpoint, else the
    official one; it wraps questions in ChatML where `chat_format` is chatml.
    """
    from qwen_mindspore.text.chatml import ChatMLTokenizer
    from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file
    settings = dict(config.processor.tokenizer)
    model_config = config.model.model_config
    settings["vocab_file"] = find_vocab_file(settings.get("vocab_file"), beside=model_config.checkpoint_name_or_path)
    is_chat = model_config.chat_format == "chatml"
    return ChatMLTokenizer(**settings) if is_chat else QwenTokenizer(**settings)


def build_config(config):
    """The model's config, a QwenConfig or a LlamaConfig, of a config from `load_config`."""
    from mindformers.models.build_config import build_model_config

    from qwen_mindspore.model import config as qwen_config  # noqa: F401  registered with MindFormers
    return build_model_config(config.model.model_config)


def build_model(config):
    """The model of a config from `load_config`, with its weights, ready to answer. Call `set_context` before."""
    from qwen_mindspore.model.graph import QwenForCausalLM
    model = QwenForCausalLM(build_config(config))
    model.set_train(False)
    return model


@contextlib.contextmanager
def stdout_for_answers(verbose):
    """
    A stream on the real standard output, while whatever else is written there goes to standard error, or, where it
    comes from MindFormers and is in its log file anyway, nowhere.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stdout if verbose else nowhere):
                yield answers
        finally:
            os.dup2(answers.fileno(), 1)
