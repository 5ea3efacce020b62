"""
Answer every row of a file: `python batch_generate.py --config Y --load_checkpoint C --input IN --output OUT`.

Goes on where it stopped when it is started again with the same arguments.
"""
import argparse
import contextlib
import hashlib
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "research" / "qwen")]

from qwen_mindspore.batch.journal import ANSWER, ERROR, Journal
from qwen_mindspore.batch.records import FORMATS, count_records, file_format, read_records, sha256
from qwen_mindspore.cli.options import (
    add_common_options,
    add_generation_options,
    build_config,
    build_model,
    build_tokenizer,
    generation_options,
    load_config,
    positive_int,
    set_context,
    stdout_for_answers,
)

SAMPLED = 64  # pieces of each file of a checkpoint that tell it from another
NOT_IN_ANSWERS = ("batch_size", "num_blocks", "checkpoint_name_or_path")


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b_chat.yaml")
    files = parser.add_argument_group("files")
    files.add_argument("--input", required=True, metavar="FILE", help="JSONL, JSON, CSV, TSV, Parquet, or text with a "
                                                                      "prompt on each line")
    files.add_argument("--output", required=True, metavar="FILE", help="JSONL in the order of the input; rows that can't "
                                                                       "be answered go to FILE.errors.jsonl")
    files.add_argument("--input_format", choices=list(FORMATS), help="default: by the input's name")
    files.add_argument("--overwrite", action="store_true", help="begin anew, whatever is there")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--prompt_column", metavar="NAME", help="default: prompt, messages or query")
    rows.add_argument("--id_column", metavar="NAME", default="id", help="default: id; without one the row's number")
    rows.add_argument("--system", metavar="TEXT", help="the system message of conversations that have none")
    rows.add_argument("--parse_special", action="store_true", help="control tokens that stand in a prompt are control "
                                                                   "tokens; only with chat_format raw")
    add_generation_options(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=positive_int, default=16, metavar="N", help="rows at once; default: 16")
    speed.add_argument("--cache_tokens", type=positive_int, metavar="N",
                       help="tokens that the key/value cache holds, of all rows at once; default: 1024 a row, and at "
                            "least seq_length")
    ray = parser.add_argument_group("Ray")
    ray.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster; local: over this machine")
    ray.add_argument("--ray_actors", type=positive_int, default=1, metavar="N", help="models; default: 1")
    ray.add_argument("--ray_resources", type=_resources, default=None, metavar="NAME=N,...",
                     help="what a model takes; default: NPU=1 on Ascend, on the CPU its share of a machine's CPUs")
    return parser.parse_args(argv)


def load_settings(args, config):
    """The GenerationSettings of every row; ValueError for a value that one can't have."""
    from qwen_mindspore.generate.settings import GenerationSettings
    settings = GenerationSettings.load(build_config(config), **generation_options(args))
    if args.parse_special and settings.chat_format != "raw":
        raise ValueError("--parse_special: this is a chat model, and in ChatML what a user types stays text; with "
                         "--chat_format raw prompts are taken as they are")
    return settings.override(seed=settings.seed or 0)  # a run that is resumed must draw what it would have drawn


def row_options(args):
    """The RowOptions of the command line."""
    from qwen_mindspore.batch.worker import RowOptions
    from qwen_mindspore.text.chatml import DEFAULT_SYSTEM
    return RowOptions(args.prompt_column, args.id_column, DEFAULT_SYSTEM if args.system is None else args.system,
                      args.parse_special)


def size_model(args, config):
    """Write into the config for how many rows at once the model makes room."""
    model_config = config.model.model_config
    model_config.batch_size = args.batch_size
    length, block = model_config.seq_length, model_config.block_size or 16
    most = args.batch_size * length
    wanted = args.cache_tokens or max(length, args.batch_size * 1024)
    if wanted < length:
        raise ValueError(f"--cache_tokens: expected at least seq_length, {length}: a row may be that long; found {wanted}")
    model_config.num_blocks = -(-min(wanted, most) // block)


def fingerprint(args, config, settings, options):
    """What an answer depends on, as a dict of JSON's types; never the number of rows at once, or where they are."""
    model_config = config.model.model_config
    tokenizer = build_tokenizer(config)
    model = {name: value for name, value in model_config.items() if name not in NOT_IN_ANSWERS}
    kernels = os.environ.get("QWEN_KERNELS") or model_config.kernels or "auto"
    return {"input": {"sha256": sha256(args.input), "format": file_format(args.input, args.input_format)},
            "rows_are_read": asdict(options), "settings": asdict(settings),
            "model": {**model, "device": config.context.device_target, "kernels": kernels},
            "checkpoint": checkpoint_digest(model_config.checkpoint_name_or_path),
            "vocabulary": sha256(tokenizer.vocab_file)}


def checkpoint_digest(checkpoint):
    """
    A digest by which a checkpoint is known again: of its files' sizes and of 64 pieces of each, spread evenly. Reading
    all of a large model would take longer than loading it.
    """
    from qwen_mindspore.model.load import checkpoint_files
    digest = hashlib.sha256()
    for path in checkpoint_files(checkpoint):
        size, piece = path.stat().st_size, 2**16
        digest.update(f"{size} ".encode())
        with open(path, "rb") as file:
            for place in range(0, size, max(piece, size // SAMPLED)):
                file.seek(place)
                digest.update(file.read(piece))
    return digest.hexdigest()


def build_worker(args, config):
    """The Worker of one process, with a model of its own."""
    from qwen_mindspore.batch.worker import Worker
    from qwen_mindspore.generate.engine import Engine
    set_context(config)
    size_model(args, config)
    engine = Engine(build_model(config), max_batch=args.batch_size)
    return Worker(engine, build_tokenizer(config), load_settings(args, config), row_options(args))


class Patience:
    """
    While it is entered, SIGINT and SIGTERM wait for `check`, which raises the KeyboardInterrupt; a second one does not.

    Both are one: while a graph runs, MindSpore makes a SIGTERM of a SIGINT.
    """

    def __init__(self):
        self.is_over = False

    def __enter__(self):
        self.old = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def check(self):
        """KeyboardInterrupt if there was a signal."""
        if self.is_over:
            raise KeyboardInterrupt

    def _receive(self, *_):
        self.check()
        self.is_over = True


class Progress:
    """
    Rows, tokens/s and time left, on standard error; and rows that can't be answered.

    Args:
        total, done (int): Rows there are, and those that are finished already.
        place (str): What the number of a row counts.
    """

    def __init__(self, total, done, place):
        self.place = place
        is_terminal = sys.stderr.isatty()
        self.interval = 0.5 if is_terminal else 10.0
        self.bar = tqdm(total=total, initial=done, unit=" rows", smoothing=0.1, mininterval=self.interval,
                        dynamic_ncols=is_terminal, file=sys.stderr)
        self.start, self.shown, self.tokens = None, time.monotonic(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def add(self, results, tokens):
        """Rows have finished, tokens were generated."""
        for result in results:
            if result.kind == ERROR:
                self.bar.write(f"batch_generate: {self.place} {result.number}: {result.content['error']}",
                               file=sys.stderr)
        now = time.monotonic()
        if self.start is not None:
            self.tokens += tokens
            self.bar.set_postfix_str(f"{self.tokens / max(now - self.start, 1e-9):.1f} tokens/s", refresh=False)
        elif tokens:  # the first tokens' time is also that of compiling the graphs
            self.start = now
        self.bar.update(len(results))
        if now - self.shown > self.interval:  # a bar shows itself when rows finish; the rate changes before
            self.bar.refresh()
            self.shown = now


def generate(args):
    """
    Answer the rows of the command line's input that the output lacks.

    Returns:
        Journal, complete.

    Raises:
        ValueError, OSError, RuntimeError: It can't be done.
        KeyboardInterrupt: By a signal.
    """
    format = file_format(args.input, args.input_format)
    if Path(args.output).exists() and os.path.samefile(args.input, args.output):
        raise ValueError(f"--output {args.output}: this is the input")
    config = load_config(args)
    size_model(args, config)
    settings, options = load_settings(args, config), row_options(args)
    total = count_records(args.input, format, args.prompt_column)
    with Journal(args.output, fingerprint(args, config, settings, options), args.overwrite) as journal:
        done = sum(journal.counts.values())
        if journal.is_complete:
            _say(f"{args.output} is complete already")
            return journal
        if done:
            _say(f"going on behind {done} of {total} rows")
        if done < total:
            _answer(args, config, format, journal, total)
        journal.finish()
    bad = journal.counts[ERROR]
    rest = f", {bad} could not be: see {journal.errors}" if bad else ""
    _say(f"{journal.counts[ANSWER]} rows answered{rest}")
    return journal


def _answer(args, config, format, journal, total):
    """Answer the rows that the journal lacks."""
    if args.ray:
        from qwen_mindspore.batch.ray_data import answer_on_ray
        answers = answer_on_ray(args, config, format, journal)
    else:
        from qwen_mindspore.batch.worker import answer_all
        worker = build_worker(args, config)
        answers = answer_all(worker, read_records(args.input, format, args.prompt_column, skip=journal))
    progress = Progress(total, sum(journal.counts.values()), FORMATS[format].place)
    with contextlib.closing(answers), Patience() as patience, progress:
        for results, tokens in answers:
            results = [result for result in results if result.number not in journal]  # Ray may do one twice
            for result in results:
                journal.add(*result)
            progress.add(results, tokens)
            patience.check()


def _resources(text):
    try:
        return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, with commas between several, found {text}") from None


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)
    if not args.verbose:
        os.environ.setdefault("GLOG_v", "3")
    old_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with stdout_for_answers(args.verbose):
            counts = generate(args).counts
        return 1 if counts[ERROR] and not counts[ANSWER] else 0
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        return 128 + signal.SIGINT
    except (ValueError, OSError, RuntimeError) as error:
        _say(error)
        return 1
    finally:
        signal.signal(signal.SIGTERM, old_handler)


def _say(text):
    print(f"batch_generate: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
