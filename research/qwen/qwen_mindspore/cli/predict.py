"""
Answer prompts with a Qwen of any size: `python run_qwen_7b.py --config Y --load_checkpoint C --predict_data TEXT`.

Standard output carries the answers and nothing else; logs go to standard error.
"""
import argparse
import contextlib
import sys
import time
from pathlib import Path

import numpy as np

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import (
    add_common_options,
    add_generation_options,
    boolean,
    config_of,
    generation_options,
    positive_int,
    settle_model,
)
from qwen_mindspore.common.files import replacing
from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.common.progress import waiting
from qwen_mindspore.common.text import argument_text, is_blank
from qwen_mindspore.generate.build import build_config, build_model, build_tokenizer, set_context
from qwen_mindspore.generate.settings import FROM_1, GenerationSettings, from_text
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
                        help="the most tokens of a prompt and its answer together; default: the max_new_tokens of the "
                             "generation_config.json, else the YAML's max_decode_length")
    add_generation_options(parser)
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
    if isinstance(arguments, (str, bytes)):
        raise ValueError(f"--predict_data: expected a list of prompts, found {arguments!r}")
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
        if is_blank(prompt):
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
    """Counts tokens on standard error."""

    def __init__(self):
        self.tokens, self.first = 0, None

    def add(self, tokens):
        """So many tokens there are now, of all answers."""
        now = time.time()
        if self.first is None:
            # The first tokens' time is the prompts', and that of compiling the graph.
            self.start, self.first, self.shown = now, tokens, now
        self.tokens = tokens
        if now - self.shown > 0.5:
            self._show()

    def close(self):
        """There is no more to come."""
        if self.first is not None:
            self._show()
            print(file=sys.stderr)

    def _show(self):
        self.shown = time.time()
        rate = (self.tokens - self.first) / max(self.shown - self.start, 1e-9)
        print(f"\r{self.tokens} tokens, {rate:.1f} tokens/s", end="", file=sys.stderr, flush=True)


def predict(args):
    """
    Answer every prompt of the command line, up to the YAML's `batch_size` of them at once.

    Returns:
        list[str], one for each prompt: the prompt with its continuation, or a chat model's reply.

    Raises:
        ValueError: A prompt that is empty or that the model can't hold, a setting out of range, a bad YAML.
        FloatingPointError: The logits of a prompt are not finite.
    """
    prompts = read_prompts(args.predict_data)
    with waiting(NAME, "loading the model"):
        config = config_of(args)
        set_context(config)
        tokenizer, model_config = build_tokenizer(config), config.model.model_config
        model_config.batch_size = min(len(prompts), model_config.batch_size or 1)
        settings = GenerationSettings.load(build_config(config), **generation_options(args))
        model = build_model(config)
    from qwen_mindspore.generate.answers import Answers
    from qwen_mindspore.generate.engine import Engine
    jobs = _jobs(args, prompts, settings, tokenizer, model.config)
    answers, progress = Answers(Engine(model), tokenizer), Progress()
    begun = [answers.add(ids, settings, number) for number, (ids, settings) in enumerate(jobs, 1)]
    with contextlib.closing(progress):
        while answers.has_work:
            for answer in answers.step():
                if answer.error:
                    raise answer.error
            progress.add(answers.tokens)
    texts = [_text(ids, settings, answer.text, tokenizer) for (ids, settings), answer in zip(jobs, begun)]
    with replacing(config.save_file) as file:  # as MindFormers' Trainer leaves them
        file.write_text(str([{"text_generation_text": [text]} for text in texts]), encoding="utf-8")
    return texts


def _jobs(args, prompts, settings, tokenizer, config):
    """[(ids of a prompt, its GenerationSettings)]; ValueError for a prompt that can't be answered."""
    from qwen_mindspore.generate.answers import prompt_of, room_of
    from qwen_mindspore.generate.sampling import check_prompt
    from qwen_mindspore.text.chatml import DEFAULT_SYSTEM
    is_raw = settings.chat_format == "raw"
    system = [] if is_raw else [{"role": "system", "content": getattr(tokenizer, "system", DEFAULT_SYSTEM)}]
    jobs = []
    for number, prompt in enumerate(prompts, 1):
        ids = prompt_of([*system, {"role": "user", "content": prompt}], settings, tokenizer, config,
                        parse_special=is_raw)
        name = f"--predict_data: prompt {number}"
        check_prompt(np.asarray(ids), config.vocab_size, room_of(config), name)
        jobs.append((ids, _limited(args, settings.of_row(number), config, len(ids), name)))
    return jobs


def _limited(args, settings, config, length, name):
    """The settings with a length of the answer by that of prompt and answer together, where that is what is given."""
    is_given = args.max_new_tokens or "max_new_tokens" in settings.of_file(config.checkpoint_name_or_path)
    total = args.predict_length or (None if is_given else config.max_decode_length)
    if args.max_new_tokens or not total:
        return settings
    total = read_as(FROM_1, "max_decode_length", from_text("max_decode_length", total))
    if length >= total:
        raise ValueError(f"{name} has {length} tokens, which max_length={total} (prompt and answer together: "
                         "--predict_length, or max_decode_length of the YAML) leaves no answer for: raise it, or give "
                         "--max_new_tokens")
    return settings.override(max_new_tokens=total - length)


def _text(ids, settings, answer, tokenizer):
    """What is printed: a chat model's reply; of a base model the prompt goes before it."""
    if settings.chat_format == "chatml":
        return answer
    return tokenizer.decode(ids, skip_special_tokens=True) + answer


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        settle_model(args)
        for answer in predict(args):
            print(answer, file=answers, flush=True)

    return run_command(NAME, work, args.verbose)
