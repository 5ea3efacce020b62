"""How every command runs: answers on standard output, all else on standard error, signals, and errors of one line."""
import codecs
import contextlib
import locale
import os
import signal
import sys

from qwen_mindspore.common.cpus import check_threads
from qwen_mindspore.common.files import write_json
from qwen_mindspore.common.folders import provide_folders
from qwen_mindspore.common.progress import say

__all__ = ["INTERRUPTED", "give_report", "run_command", "stdout_for_answers"]

INTERRUPTED = 128 + signal.SIGINT  # the exit code of a command that was interrupted
BROKEN_PIPE = 128 + 13  # SIGPIPE, which not every system has


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
        int, the exit code; as of any filter, 141 where nobody reads the answers any more.
    """
    if not verbose:
        os.environ.setdefault("GLOG_v", "3")
    has_stdout = _open_standard_streams()
    signals = []

    def interrupt(number, _):
        signals.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not has_stdout:
            raise OSError("standard output is closed: there is no place for answers")
        _check_working_folder()
        check_threads()
        _write_utf8()
        provide_folders()
        with stdout_for_answers(verbose) as answers:
            return work(answers) or 0
    except BrokenPipeError:  # who reads has read enough, as `head` does
        return BROKEN_PIPE
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


def _open_standard_streams():
    """
    Open to nowhere what of standard input, output and error is closed, lest a file be opened in its place and get what
    is written there. Returns whether there is a standard output.
    """
    is_open = []
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
            is_open.append(getattr(sys, name) is not None)
        except OSError:
            is_open.append(False)
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    return is_open[1]


def _write_utf8():
    """MindFormers writes its result by the locale, in which there may be no Chinese: then by one of UTF-8."""
    if codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["LC_ALL"] = "C.UTF-8"  # some import sets the locale by it
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def _check_working_folder():
    """OSError where it has been removed, or nobody may look into it: MindSpore can't be imported there."""
    try:
        os.getcwd()
    except OSError as error:
        raise OSError(f"the working folder: {error.strerror}: go to one that is there") from None


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
    # A path that is not UTF-8 is written as it is.
    with (os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape") as answers,
          open(os.devnull, "w", encoding="utf-8") as nowhere):
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stdout if verbose else nowhere):
                yield answers
        finally:
            os.dup2(answers.fileno(), 1)
