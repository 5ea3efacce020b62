"""A person at a terminal: a prompt with history and line editing, answers that grow and are broken between words."""
import contextlib
import os
from pathlib import Path

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import get_cwidth

from qwen_mindspore.chat.session import CLEAR_SCREEN, COMMAND_NAMES, growth
from qwen_mindspore.common.progress import say

__all__ = ["UNPRINTABLE", "Terminal", "Wrapped"]

# What would move the cursor or worse, should a model say it to a terminal.
UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Terminal:
    """
    Where a person types and reads.

    Args:
        file (file): the terminal.
        input_history (str): the file that keeps what is typed.
    """

    has_failed = False  # a person has seen what failed

    def __init__(self, file, input_history):
        self.file, self.input, self.output = file, create_input(), create_output(stdout=file)
        self.session = PromptSession(
            input=self.input, output=self.output, history=_history(input_history), key_bindings=_keys(), multiline=True,
            prompt_continuation="...  ", completer=WordCompleter(COMMAND_NAMES, sentence=True),
            complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE)

    def greet(self, name, device):
        """The first thing that is seen."""
        self._print("bold", name)
        self.say(f" on the {device}. :help lists the commands, Ctrl-D leaves.\n")

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
        label, reply = "Qwen: ", None
        self._print("ansicyan bold", label)
        text = Wrapped(self.file, self.output.get_size().columns, len(label))
        try:
            with _ctrl_c(self.input) as is_pressed, contextlib.closing(growth(replies)) as pieces:
                for piece, reply in pieces:
                    text.write(piece)
                    if is_pressed():
                        break
        finally:
            text.write("\n")
        return reply

    def say(self, text):
        """What is not an answer."""
        if text == CLEAR_SCREEN:
            print(text, end="", file=self.file, flush=True)
        else:
            Wrapped(self.file, self.output.get_size().columns).write(f"{text}\n")

    def complain(self, error):
        """What could not be done."""
        self._print("ansired", f"{error}\n")

    def _print(self, style, text):
        print_formatted_text(FormattedText([(style, text.translate(UNPRINTABLE))]), end="", output=self.output)


class Wrapped:
    """
    Text that is written piece by piece, its lines broken between words where the terminal's end.

    Args:
        file (file): the terminal.
        columns (int): its width.
        column (int): where the cursor stands.
    """

    def __init__(self, file, columns, column=0):
        self.file, self.column = file, column
        self.room = columns - 1  # behind the last column, terminals differ on where the cursor is
        self.word = ""  # that the line ends with

    def write(self, text):
        """Write what there is more of the text, its control characters as U+FFFD."""
        for character in text.translate(UNPRINTABLE).replace("\t", "    "):
            self._put(character, get_cwidth(character))
        self.file.flush()

    def _put(self, character, width):
        if character == "\n":
            return self._newline()
        if self.column + width > self.room:
            if character == " ":
                return self._newline()
            word, size = self.word, get_cwidth(self.word)
            if 0 < size < self.column:  # the word begun moves on to the next line
                self.file.write(f"\x1b[{size}D\x1b[K")
            else:
                word, size = "", 0
            self._newline()
            self.file.write(word)
            self.word, self.column = word, size
        self.file.write(character)
        self.column += width
        # Between wide characters, those of Chinese and its neighbours, a line may end anywhere.
        self.word = "" if character == " " or width > 1 else self.word + character
        return None

    def _newline(self):
        self.file.write("\n")
        self.column, self.word = 0, ""


def _keys():
    """Enter sends, but for a line that ends with a backslash; Alt-Enter begins a new line."""
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


def _history(path):
    """What was typed before, in a file that only its owner can read; in memory where that can't be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        say("run_qwen_7b_chat", f"--input_history: what you type is not kept: {error}")
        return InMemoryHistory()
    return FileHistory(path)


@contextlib.contextmanager
def _ctrl_c(source):
    """
    A function that says whether Ctrl-C was pressed since. Other keys wait for the next prompt.

    The terminal sends no signal meanwhile: MindSpore may end the program at one, and no step is left half done.
    """
    typed = []

    def is_pressed():
        typed.extend(source.read_keys())
        return any(key.key == Keys.ControlC for key in typed)

    with source.raw_mode():
        yield is_pressed
        if not is_pressed():
            store_typeahead(source, typed)
