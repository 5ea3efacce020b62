"""Answering the rows of a file that its output lacks: `generate` is the whole of it."""
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from qwen_mindspore.batch.assemble import build_worker, fingerprint, load_settings, row_options
from qwen_mindspore.batch.journal import ANSWER, ERROR, Journal, written
from qwen_mindspore.batch.records import FORMATS, count_records, file_format, read_records
from qwen_mindspore.batch.worker import answer_all
from qwen_mindspore.common.progress import say
from qwen_mindspore.generate.build import load_config, size_model

__all__ = ["NAME", "generate"]

NAME = "batch_generate"


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
    _check_output(args.input, args.output)
    config = load_config(args.config, args.load_checkpoint, args.device_target, args.device_id)
    size_model(args, config)
    settings, options = load_settings(args, config), row_options(args)
    total = count_records(args.input, format, args.prompt_column)
    with Journal(args.output, fingerprint(args, config, settings, options), args.overwrite) as journal:
        done = sum(journal.counts.values())
        if journal.is_complete:
            say(NAME, f"{args.output} is complete already")
            return journal
        if done:
            say(NAME, f"resuming behind {done} of {total} rows")
        if done < total:
            _answer(args, config, format, journal, total)
        journal.finish()
    bad = journal.counts[ERROR]
    rest = f", {bad} could not be: see {journal.errors}" if bad else ""
    say(NAME, f"{journal.counts[ANSWER]} rows answered{rest}")
    return journal


def _check_output(input, output):
    """ValueError where there would be no place for the output, or the input would be lost for it."""
    if Path(output).is_dir():
        raise ValueError(f"--output {output}: this is a folder: name a file in it")
    for path in written(output):
        if path.exists() and os.path.samefile(input, path):
            what = "this is the input" if path == Path(output) else f"the input is {path}, which is written beside it"
            raise ValueError(f"--output {output}: {what}: name another")


def _answer(args, config, format, journal, total):
    """Answer the rows that the journal lacks."""
    if args.ray:
        from qwen_mindspore.batch.ray_data import answer_on_ray
        answers = answer_on_ray(args, config, format, journal)
    else:
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
