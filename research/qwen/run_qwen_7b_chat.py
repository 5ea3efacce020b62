"""
Talk to a Qwen of any size: `python run_qwen_7b_chat.py --config Y --load_checkpoint C`.

At a terminal: a prompt with history and line editing, answers as they grow, commands that begin with a colon. In a pipe:
one question a line; standard output carries the answers and nothing else.
"""
import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from qwen_run import (
    add_common_options,
    add_generation_options,
    build_config,
    build_model,
    build_tokenizer,
    generation_options,
    load_config,
    set_context,
    stdout_for_answers,
)

STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qwen-mindspore"
# What would move the cursor or worse, should a model say it to a terminal.
UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b_chat.yaml")
    parser.add_argument("--system", metavar="TEXT", help="the system message; default: You are a helpful assistant.")
    parser.add_argument("--stats", action="store_true", help="tokens/s after each answer")
    parser.add_argument("--independent", action="store_true",
                        help="in a pipe: each question begins a new conversation; default: one conversation")
    parser.add_argument("--input_history", default=str(STATE / "chat_history"), metavar="FILE",
                        help="where the terminal keeps what was typed; default: %(default)s")
    add_generation_options(parser)
    return parser.parse_args(argv)


def build_session(args):
    """
    The Session of a command line; loads the model.

    Raises:
        FileNotFoundError, ValueError: What the command line or the YAML names is not there, or can't be.
    """
    from qwen_chat import chat_settings
    from qwen_chatml import DEFAULT_SYSTEM
    from qwen_session import Session
    config = load_config(args)
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
        """The lines of standard input, those that end with a backslash joined with the next."""
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        begun = ""
        for self.number, line in enumerate(sys.stdin, 1):
            line = line.rstrip("\n")
            if line.endswith("\\"):
                begun += line[:-1] + "\n"
            else:
                yield begun + line
                begun = ""
        if begun:
            yield begun

    def answer(self, replies):
        """Print an answer while it grows, and return the last Reply."""
        reply = _print_growing(replies, self.answers)
        print(file=self.answers, flush=True)
        return reply

    def say(self, text):
        """What is not an answer."""
        from qwen_session import CLEAR_SCREEN
        if text != CLEAR_SCREEN:
            print(text, file=sys.stderr, flush=True)

    def complain(self, error):
        """What could not be done."""
        self.has_failed = True
        print(f"run_qwen_7b_chat: line {self.number}: {error}", file=sys.stderr, flush=True)


class Terminal:
    """A person at a terminal."""

    def __init__(self, answers, input_history):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        from qwen_session import COMMAND_NAMES
        self.answers, self.has_failed = answers, False
        self.input, self.output = create_input(), create_output(stdout=answers)
        self.session = PromptSession(
            input=self.input, output=self.output, history=_input_history(input_history), key_bindings=_keys(), multiline=True,
            prompt_continuation="...  ", completer=WordCompleter(COMMAND_NAMES, sentence=True),
            complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE)

    def greet(self, name, device):
        """The first thing that is seen."""
        self._print("bold", name, end="")
        self.say(f" on the {device}. Ask something; :help lists the commands, Ctrl-D leaves.\n")

    def lines(self):
        """What is typed. Ctrl-C drops a line, Ctrl-D on an empty one ends it all."""
        while True:
            try:
                yield self.session.prompt([("ansigreen bold", "You: ")])
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def answer(self, replies):
        """Print an answer while it grows, until it ends or Ctrl-C is pressed, and return the last Reply."""
        self._print("ansicyan bold", "Qwen: ", end="")
        with _ctrl_c(self.input) as is_pressed:
            reply = _print_growing(replies, self.answers, is_pressed, UNPRINTABLE)
        print(file=self.answers, flush=True)
        return reply

    def say(self, text):
        """What is not an answer."""
        from qwen_session import CLEAR_SCREEN
        if text == CLEAR_SCREEN:
            print(text, end="", file=self.answers, flush=True)
        else:
            self._print("", text)

    def complain(self, error):
        """What could not be done."""
        self._print("ansired", str(error))

    def _print(self, style, text, end="\n"):
        from prompt_toolkit import print_formatted_text
        from prompt_toolkit.formatted_text import FormattedText
        print_formatted_text(FormattedText([(style, text.translate(UNPRINTABLE))]), end=end, output=self.output)


def _keys():
    """Enter sends, but for a line that ends with a backslash; Alt-Enter begins a new line."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event):
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event):
        event.current_buffer.insert_text("\n")

    return keys


def _input_history(path):
    """What was typed before, in a file that only its owner can read; in memory where that can't be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        print(f"run_qwen_7b_chat: --input_history: what you type is not kept: {error}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(path)


@contextlib.contextmanager
def _ctrl_c(source):
    """
    A function that says whether Ctrl-C was pressed since. Other keys wait for the next prompt.

    The terminal sends no signal meanwhile: MindSpore may end the program at one, and no step is left half done.
    """
    from prompt_toolkit.input.typeahead import store_typeahead
    from prompt_toolkit.keys import Keys
    typed = []

    def is_pressed():
        typed.extend(source.read_keys())
        return any(key.key == Keys.ControlC for key in typed)

    with source.raw_mode():
        yield is_pressed
        if not is_pressed():
            store_typeahead(source, typed)


def _never():
    return False


def _print_growing(replies, file, is_stopped=_never, unprintable=None):
    shown, reply = 0, None
    with contextlib.closing(replies):
        for reply in replies:
            piece = reply.text[shown:]
            shown += len(piece)
            print(piece.translate(unprintable or {}), end="", file=file, flush=True)
            if is_stopped():
                break
    return reply


def talk(session, console, independent=False):
    """
    Take lines until they end or `:exit` comes.

    Args:
        session (Session): Answers.
        console (Pipe or Terminal): Where lines come from and answers go.
        independent (bool): Begin a new conversation with each question.
    """
    from qwen_session import Question
    for line in console.lines():
        if not line.strip():
            continue
        try:
            said = session.read(line)
            if isinstance(said, Question):
                if independent:
                    session.history = []
                _answer(session, console, said)
            elif said:
                console.say(said)
        except (ValueError, OSError) as error:
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


@contextlib.contextmanager
def _notice(text):
    """A line for a person who waits, gone when the waiting is over."""
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)
    yield
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)
    if not args.verbose:
        os.environ.setdefault("GLOG_v", "3")
    with stdout_for_answers(args.verbose) as answers:
        is_terminal = sys.stdin.isatty() and answers.isatty()
        if not is_terminal:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads the answers may stop, as with any filter
        try:
            with _notice("Loading the model ..."):
                session, config = build_session(args)
            console = Terminal(answers, args.input_history) if is_terminal else Pipe(answers)
            checkpoint = Path(config.model.model_config.checkpoint_name_or_path).resolve()
            console.greet(checkpoint.stem if checkpoint.is_file() else checkpoint.name, config.context.device_target)
            talk(session, console, args.independent)
        except (ValueError, OSError) as error:
            print(f"run_qwen_7b_chat: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130
    return int(console.has_failed)


if __name__ == "__main__":
    sys.exit(main())
