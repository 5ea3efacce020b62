"""
Talk to a Qwen of any size: `python run_qwen_7b_chat.py --config Y --load_checkpoint C`.

At a terminal: a prompt with history and line editing, answers as they grow, commands that begin with a colon. In a
pipe: one question a line; standard output carries the answers and nothing else.
"""
import argparse
import signal
import sys
from pathlib import Path

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import (
    add_common_options,
    add_generation_options,
    config_of,
    generation_options,
    settle_model,
    utf8,
)
from qwen_mindspore.common.files import check_encoding, decode_text, state_folder
from qwen_mindspore.common.progress import say, waiting
from qwen_mindspore.common.text import is_blank
from qwen_mindspore.generate.build import build_config, build_model, build_tokenizer, set_context

NAME = "run_qwen_7b_chat"


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b_chat.yaml")
    parser.add_argument("--system", type=utf8, metavar="TEXT",
                        help="the system message; default: You are a helpful assistant.")
    parser.add_argument("--stats", action="store_true", help="tokens/s after each answer")
    parser.add_argument("--independent", action="store_true",
                        help="in a pipe: each question begins a new conversation; default: one conversation")
    parser.add_argument("--input_history", metavar="FILE",
                        help="where the terminal keeps what was typed; default: chat_history in "
                             "$XDG_STATE_HOME/qwen-mindspore or ~/.local/state/qwen-mindspore")
    add_generation_options(parser)
    return parser.parse_args(argv)


def build_session(args):
    """
    The Session of a command line; loads the model.

    Raises:
        FileNotFoundError, ValueError: What the command line or the YAML names is not there, or can't be.
    """
    config = config_of(args)
    from qwen_mindspore.chat.chat import chat_settings
    from qwen_mindspore.chat.session import Session
    from qwen_mindspore.text.chatml import DEFAULT_SYSTEM
    settings = chat_settings(build_config(config), **generation_options(args))
    set_context(config)
    session = Session(build_model(config), build_tokenizer(config), settings,
                      DEFAULT_SYSTEM if args.system is None else args.system)
    session.show_stats = args.stats
    return session, config


class Pipe:
    """Questions from standard input, answers to `answers`, all else to standard error."""

    def __init__(self, answers):
        self.answers, self.number, self.has_failed = answers, 0, False

    def greet(self, name, device):
        """Nothing: who reads answers wants answers."""

    def lines(self):
        """
        The lines of standard input, those that end with a backslash joined with the next. One that is not UTF-8 is
        named and left out; ValueError for an input in another encoding.
        """
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        begun = ""
        for self.number, line in enumerate(sys.stdin, 1):
            line = self._checked(line.rstrip("\n"))
            if line is None:
                begun = ""
                continue
            if line.endswith("\\"):
                begun += line[:-1] + "\n"
            else:
                yield begun + line
                begun = ""
        if begun:
            yield begun

    def _checked(self, line):
        """A line of standard input without a byte order mark; None, and a complaint, where it is no text."""
        raw = line.encode("utf-8", "surrogateescape")
        if self.number == 1:
            check_encoding(raw, "standard input")
        try:
            text = decode_text(raw)
        except ValueError as error:
            self.complain(error)
            return None
        return text if self.number == 1 else line

    def answer(self, replies):
        """Print an answer while it grows, and return the last Reply."""
        from qwen_mindspore.chat.session import growth
        is_begun = False
        try:
            for piece, reply in growth(replies):
                print(piece, end="", file=self.answers, flush=True)
                is_begun = is_begun or bool(piece)
        except (ArithmeticError, RuntimeError):
            if is_begun:  # the next answer has a line of its own
                print(file=self.answers, flush=True)
            raise
        print(file=self.answers, flush=True)
        return reply

    def say(self, text):
        """What is not an answer."""
        from qwen_mindspore.chat.session import CLEAR_SCREEN
        if text != CLEAR_SCREEN:
            print(text, file=sys.stderr, flush=True)

    def complain(self, error):
        """What could not be done."""
        self.has_failed = True
        say(NAME, f"line {self.number}: {error}")


def talk(session, console, independent=False):
    """
    Take lines until they end or `:exit` comes. What can't be done, or fails, is told; the conversation goes on.

    Args:
        session (Session): Answers.
        console (Pipe or Terminal): Where lines come from and answers go.
        independent (bool): Begin a new conversation with each question.
    """
    from qwen_mindspore.chat.session import Question
    for line in console.lines():
        if is_blank(line):
            continue
        try:
            said = session.read(line)
            if isinstance(said, Question):
                if independent:
                    session.history = []
                _answer(session, console, said)
            elif said:
                console.say(said)
        except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
            console.complain(error)
        if session.is_over:
            break


def _answer(session, console, question):
    reply = console.answer(session.ask(question))
    if reply.finish_reason is None:
        console.say("[stopped]")
    elif reply.finish_reason == "length":
        console.say(f"[cut off after {reply.tokens} tokens; :conf max_new_tokens=N allows more]")
    if session.show_stats:
        console.say(f"[{session.stats()}]")


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        settle_model(args)
        with waiting(NAME, "loading the model"):
            session, config = build_session(args)
        if sys.stdin.isatty() and answers.isatty():
            from qwen_mindspore.chat.terminal import Terminal
            console = Terminal(answers, args.input_history or str(state_folder("chat_history")))
        else:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads may stop reading, as with any filter
            console = Pipe(answers)
        checkpoint = Path(config.model.model_config.checkpoint_name_or_path).resolve()
        console.greet(checkpoint.stem if checkpoint.is_file() else checkpoint.name, config.context.device_target)
        talk(session, console, args.independent)
        return int(console.has_failed)

    return run_command(NAME, work, args.verbose)
