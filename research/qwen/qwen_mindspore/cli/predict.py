"""
Answer prompts with a Qwen of any size: `python run_qwen_7b.py --config Y --load_checkpoint C --predict_data TEXT`.

Standard output carries the answers and nothing else; logs go to standard error.
"""
import argparse
import sys
import time
from pathlib import Path

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import add_common_options, boolean, config_of, positive_int, settle_model
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import argument_text
from qwen_mindspore.generate.build import build_tokenizer, set_context
from qwen_mindspore.text.files import read_lines

NAME = "run_qwen_7b"


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b.yaml")
    parser.add_argument("--run_mode", default="predict", choices=["predict"])
    parser.add_argument("--task", default="text_generation", choices=["text_generation"])
    parser.add_argument("--predict_data", nargs="+", required=True, metavar="TEXT",
                        help="prompts, or @FILE for a file with one prompt a line; a prompt that begins with @ "
                             "is written with two of them")
    parser.add_argument("--predict_length", type=positive_int, metavar="N",
                        help="the most tokens of a prompt and its answer together; default: the YAML's "
                             "max_decode_length")
    parser.add_argument("--max_new_tokens", type=positive_int, metavar="N", help="the most tokens of an answer")
    parser.add_argument("--use_parallel", type=boolean, default=False, metavar="BOOL")
    args = parser.parse_args(argv)
    if args.use_parallel:
        parser.error("--use_parallel: this version predicts on one device")
    return args


def read_prompts(arguments):
    """
    The prompts of `--predict_data`: each argument is one, `@FILE` stands for the lines of a UTF-8 file, `@@TEXT` for a
    prompt that begins with @.

    Raises:
        ValueError: A prompt is empty or not UTF-8, or there is none.
        OSError: The file can't be read.
    """
    prompts = []
    for argument in arguments:
        if argument.startswith("@") and not argument.startswith("@@"):
            prompts += _prompts_of(argument[1:])
            continue
        try:
            prompts.append(argument_text(argument).removeprefix("@" * argument.startswith("@@")))
        except ValueError as error:
            raise ValueError(f"--predict_data: prompt {len(prompts) + 1}: {error}") from None
    if not prompts:
        raise ValueError("--predict_data: no prompt found")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"--predict_data: prompt {number} is empty")
    return prompts


def _prompts_of(file):
    """The lines of a file that `@FILE` names."""
    if not Path(file).is_file():
        problem = "this is a folder" if Path(file).is_dir() else "no such file"
        raise FileNotFoundError(f"--predict_data @{file}: {problem}: @ stands before the name of a file of prompts; a "
                                f"prompt that begins with @ is written @@")
    return read_lines(file)


class Progress:
    """A streamer for `generate` that counts tokens on standard error."""

    def __init__(self):
        self.tokens = 0

    def put(self, ids):
        """The prompts, the first time; then the new token of each sequence."""
        if getattr(ids, "ndim", 0) == 2:
            return
        count = len(ids) if isinstance(ids, list) else 1
        if self.tokens == 0:
            # The first token's time is the prompt's, and that of compiling the graph.
            self.start, self.first, self.shown = time.time(), count, time.time()
        self.tokens += count
        if time.time() - self.shown > 0.5:
            self._show()

    def end(self):
        """A batch is done."""
        self._show()
        print(file=sys.stderr)
        self.tokens = 0

    def _show(self):
        self.shown = time.time()
        rate = (self.tokens - self.first) / max(self.shown - self.start, 1e-9)
        print(f"\r{self.tokens} tokens, {rate:.1f} tokens/s", end="", file=sys.stderr, flush=True)


def predict(args):
    """
    Answer every prompt of the command line through MindFormers' Trainer.

    Returns:
        list[str], one for each prompt: the prompt with its continuation, or a chat model's reply.
    """
    prompts = read_prompts(args.predict_data)
    say(NAME, "loading the model ...")
    config = config_of(args)
    from mindformers import Trainer

    import qwen_mindspore.generate.loop  # noqa: F401  registers the model with MindFormers
    set_context(config)
    tokenizer = build_tokenizer(config)
    model_config = config.model.model_config
    model_config.batch_size = _batch_size(len(prompts), model_config.batch_size or 1)
    limits = {}
    if args.max_new_tokens:
        limits["max_new_tokens"] = args.max_new_tokens
    else:
        limits["max_length"] = args.predict_length or model_config.max_decode_length
    Path(config.save_file).parent.mkdir(parents=True, exist_ok=True)
    task = Trainer(args=config, task=args.task, tokenizer=tokenizer)
    results = task.predict(input_data=prompts, batch_size=model_config.batch_size, streamer=Progress(), **limits)
    return [answer for result in results for answer in result["text_generation_text"]]


def _batch_size(prompts, limit):
    """The largest batch within the limit that divides the prompts evenly, as MindFormers' pipeline needs."""
    return max(size for size in range(1, limit + 1) if prompts % size == 0)


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        settle_model(args)
        for answer in predict(args):
            print(answer, file=answers, flush=True)

    return run_command(NAME, work, args.verbose)
