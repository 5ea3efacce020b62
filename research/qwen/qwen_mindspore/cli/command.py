"""How every command runs: answers on standard output, all else on standard error, signals, and errors of one line."""
import contextlib
import os
import signal
import sys

from qwen_mindspore.common.files import write_json
from qwen_mindspore.common.progress import say

__all__ = ["INTERRUPTED", "give_report", "run_command", "stdout_for_answers"]

INTERRUPTED = 128 + signal.SIGINT  # the exit code of a command that was interrupted


def run_command(name, work, verbose=False, interrupted="interrupted", failed=1):
    """
    Do the work of a command.

    SIGINT and SIGTERM, as a batch system sends it, both raise KeyboardInterrupt, so that either cleans up.

    Args:
        name (str): What messages begin with.
        work (function): Gets the stream of answers; returns the exit code, None for 0. A ValueError, OSError,
            RuntimeError or ArithmeticError that it raises is told in one line.
        verbose (bool): MindFormers' and MindSpore's whole log on standard error.
        interrupted (str): What is said when it was interrupted.
        failed (int): The exit code of an error.

    Returns:
        int, the exit code.
    """
    if not verbose:
        os.environ.setdefault("GLOG_v", "3")
    signals = []

    def interrupt(number, _):
        signals.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stdout_for_answers(verbose) as answers:
            return work(answers) or 0
    except (KeyboardInterrupt, ValueError, OSError, RuntimeError, ArithmeticError) as error:
        # Native code that is interrupted may raise an error of its own instead.
        if signals or isinstance(error, KeyboardInterrupt):
            say(name, interrupted)
            return INTERRUPTED
        say(name, _reason(error))
        return failed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def give_report(report, args, answers, table, plot):
    """
    A report as a command's options want it: its table on standard output, JSON and a plot in files.

    Args:
        report (dict): What was measured.
        args (argparse.Namespace): With `json` and `plot`, paths or None.
        answers (file): Standard output.
        table, plot (function): Make text of a report; draw one into a file.
    """
    print(table(report), file=answers)
    if args.json:
        write_json(args.json, report)
    if args.plot:
        plot(report, args.plot)


def _reason(error):
    return f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else error


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
