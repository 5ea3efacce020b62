"""A chat as a person has it: the conversation, its settings, and the commands that look after both."""
import ast
import contextlib
import re
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from qwen_mindspore.chat.chat import stream_reply
from qwen_mindspore.common.files import parse_json, read_text, replacing, to_json
from qwen_mindspore.common.kinds import as_number
from qwen_mindspore.common.text import check_whole, closest, shown
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.chatml import DEFAULT_SYSTEM, as_messages

__all__ = ["CLEAR_SCREEN", "COMMAND_NAMES", "Question", "Session", "growth", "load_conversation",
           "save_conversation"]

CLEAR_SCREEN = "\x1b[H\x1b[2J\x1b[3J"
SETTINGS = [field.name for field in fields(GenerationSettings) if field.name not in ("seed", "stop_words_ids")]
WORDS = {"true": True, "false": False, "none": None, "null": None}
HELP_ON_LINES = """
Anything else is a question (put a space before one that begins with a colon).
A line that ends with \\ goes on in the next one; Alt-Enter begins a new line,
too. Ctrl-C stops an answer, Ctrl-D leaves."""
COMMANDS = {}  # name -> (method's name, its arguments, what it does), each command under all its names


class Question(str):
    """What is to be asked now; with `instead_of`, a turn that was taken back, in its place."""

    instead_of = None


class Timing(NamedTuple):
    """How long the last answer took."""

    tokens: int
    seconds: float  # from the question to the last token
    first_seconds: float  # to the first one


def command(*names, arguments=""):
    """Make a method of `Session` a command; its docstring is the line of :help."""
    def register(method):
        for name in names:
            COMMANDS[name] = method.__name__, arguments, method.__doc__
        return method
    return register


class Session:
    """
    A conversation with a model.

    Args:
        model (QwenForCausalLM), tokenizer (QwenTokenizer): answer.
        settings (GenerationSettings): as `chat.chat.chat_settings` gives them; `:conf reset` comes back to them.
        system (str): the system message.

    Attributes:
        history (list[tuple[str, str]]): (query, response) pairs so far.
        system (str), settings (GenerationSettings): of the next answer.
        show_stats (bool): whether the user wants to see `stats()` after each answer.
        is_over (bool): `:exit` was given.
    """

    def __init__(self, model, tokenizer, settings, system=DEFAULT_SYSTEM):
        self.model, self.tokenizer = model, tokenizer
        self.settings = self.first_settings = settings
        self.system, self.history = system, []
        self.last, self.show_stats, self.is_over = None, False, False

    def read(self, line):
        """
        Take what the user typed: a line that begins with a colon is a command, anything else is a question.

        Returns:
            Question to be asked with `ask`; or str, what a command has to say.

        Raises:
            ValueError: an unknown command, or arguments that it can't use; nothing has changed then.
            OSError: a file can't be read or written.
        """
        if not line.startswith(":"):
            return Question(line.strip())
        name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
        if name not in COMMANDS:
            near = closest(name, COMMANDS)
            advice = f"did you mean :{near}?" if near else ":help lists the commands"
            raise ValueError(f":{name}: no such command; {advice}")
        method, arguments, _ = COMMANDS[name]
        if argument and not arguments:
            raise ValueError(f":{name}: expected nothing behind it, found {argument.strip()!r}")
        return getattr(self, method)(argument.strip())

    def ask(self, query):
        """
        Answer a question: Iterator[Reply], one a token. When it ends, or is closed, the turn is in the history, with
        what there is of the answer.

        Raises:
            ValueError: see `chat.chat.chat`; at once.
            FloatingPointError, RuntimeError: see there; the turn is kept as if it had been closed. Without any answer
                the conversation stays as it was.
        """
        history, turn = self.history, getattr(query, "instead_of", None)
        if turn is not None:
            self.history = [*history, turn]  # until there is another answer
        replies = stream_reply(self.model, self.tokenizer, str(query), history, self.system, self.settings,
                               chat_format=self.settings.chat_format)
        return self._keep(str(query), history, replies)

    def _keep(self, query, history, replies):
        start, first, reply = time.perf_counter(), None, None
        try:
            with contextlib.closing(replies):
                for reply in replies:
                    now = time.perf_counter() - start
                    first = first or now
                    self.last = Timing(reply.tokens, now, first)
                    yield reply
        finally:
            if reply is not None and (reply.text or reply.finish_reason):
                self.history = [*history, (query, reply.text)]

    def stats(self):
        """str, the figures of the last answer."""
        if self.last is None:
            return "no answer yet"
        tokens, seconds, first = self.last
        # The first token's time is the prompt's.
        rate = f", {(tokens - 1) / (seconds - first):.1f} tokens/s" if tokens > 1 else ""
        return f"{tokens} tokens{rate}, the first after {first:.2f} s"

    @command("help", "h")
    def do_help(self, _):
        """list the commands"""
        lines = []
        for method in dict.fromkeys(method for method, _, _ in COMMANDS.values()):
            names = [name for name, (its_method, _, _) in COMMANDS.items() if its_method == method]
            _, arguments, about = COMMANDS[names[0]]
            usage = " ".join([*(f":{name}" for name in names), arguments])
            lines.append(f"  {usage:31} {about}")
        return "\n".join(lines) + HELP_ON_LINES

    @command("exit", "quit", "q")
    def do_exit(self, _):
        """leave"""
        self.is_over = True
        return ""

    @command("clear", "cl")
    def do_clear(self, _):
        """clear the screen"""
        return CLEAR_SCREEN

    @command("clear-history", "clear-his", "clh")
    def do_clear_history(self, _):
        """begin a new conversation"""
        count, self.history = len(self.history), []
        return f"{_turns(count)} forgotten"

    @command("history", "his")
    def do_history(self, _):
        """show the conversation"""
        lines = [f"System: {self.system}"]
        for query, response in self.history:
            lines += [f"You: {query}", f"Qwen: {response}"]
        return "\n".join(lines)

    @command("undo", "u")
    def do_undo(self, _):
        """take the last turn back"""
        if not self.history:
            raise ValueError(":undo: the conversation has not begun")
        *self.history, (query, _) = self.history
        return f"taken back: {query}"

    @command("regenerate", "r")
    def do_regenerate(self, _):
        """answer the last question anew"""
        if not self.history:
            raise ValueError(":regenerate: the conversation has not begun")
        *self.history, turn = self.history
        question = Question(turn[0])
        question.instead_of = turn
        return question

    @command("system", arguments="[TEXT]")
    def do_system(self, text):
        """show or set the system message"""
        if text:
            self.system = text
        return f"system message: {self.system}"

    @command("seed", arguments="[N|none]")
    def do_seed(self, text):
        """show or set the seed of sampling"""
        if text:
            self._change({"seed": _value(text)})
        return f"seed: {'none' if self.settings.seed is None else self.settings.seed}"

    @command("conf", arguments="[KEY=VALUE ...|reset]")
    def do_conf(self, text):
        """show, change or reset the settings"""
        if text == "reset":
            return self.do_reset_conf("")
        changes = {}
        for pair in re.split(r"\s+(?=\w+\s*=)", text) if text else ():
            name, sign, value = pair.partition("=")
            if not sign:
                raise ValueError(f":conf: expected KEY=VALUE, found {pair!r}")
            changes[name.strip()] = _value(value.strip())
        self._change(changes)
        shown = [name for name in SETTINGS if not changes or name in changes]
        return "\n".join(f"{name} = {_listed(getattr(self.settings, name))}" for name in shown)

    @command("reset-conf")
    def do_reset_conf(self, _):
        """take back all changes of the settings"""
        self.settings = self.first_settings
        return "the settings are those of the beginning"

    @command("stats", arguments="[on|off]")
    def do_stats(self, text):
        """tokens/s of the last answer; on: after each"""
        if text not in ("", "on", "off"):
            raise ValueError(f":stats: expected on, off or nothing, found {text!r}")
        if text:
            self.show_stats = text == "on"
            return f"figures after each answer: {text}"
        return self.stats()

    @command("save", arguments="FILE")
    def do_save(self, text):
        """write the conversation to a file (JSON)"""
        if not text:
            raise ValueError(":save: expected the name of a file")
        save_conversation(text, self.system, self.history)
        return f"{_turns(len(self.history))} saved to {text}"

    @command("load", arguments="FILE")
    def do_load(self, text):
        """go on with a conversation that was saved"""
        if not text:
            raise ValueError(":load: expected the name of a file")
        self.system, self.history = load_conversation(text)
        return f"{_turns(len(self.history))} loaded from {text}"

    def _change(self, changes):
        """Change settings, all or, with a ValueError, none."""
        for name in changes:
            if name not in [*SETTINGS, "seed"]:
                near = closest(name, SETTINGS)
                advice = f"did you mean {near}?" if near else f"there are {', '.join(SETTINGS)}"
                raise ValueError(f"{name}: no such setting; {advice}")
        self.settings = replace(self.settings, **changes)


def growth(replies):
    """What each Reply of an answer adds to its text: Iterator[(str, Reply)]."""
    shown = 0
    with contextlib.closing(replies):
        for reply in replies:
            yield reply.text[shown:], reply
            shown = len(reply.text)


COMMAND_NAMES = [f":{name}" for name in COMMANDS]


def save_conversation(path, system, history):
    """
    Write `{"messages": [{"role": ..., "content": ...}, ...]}`, the form that most chat programs read.

    Raises:
        ValueError: the file exists and is no such conversation.
        OSError: it can't be written; what was there is there still.
    """
    path = Path(path).expanduser()
    if path.exists():
        try:
            load_conversation(path)
        except ValueError:
            raise ValueError(f"{path}: expected a new file or a saved conversation, found something else; it stays "
                             "as it is") from None
    messages = as_messages(history, system)
    with replacing(path, make_parents=False) as written:
        written.write_bytes(to_json({"messages": messages}))


def load_conversation(path):
    """
    Read what `save_conversation` wrote.

    Returns:
        (str, list[tuple[str, str]]), the system message (the usual one where there is none) and the history.

    Raises:
        ValueError: it is no such file; the message names what is wrong.
        OSError: it can't be read.
    """
    path = Path(path).expanduser()
    try:
        messages = parse_json(read_text(path))["messages"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path}: expected JSON of the form {{"messages": [...]}}') from None
    if not isinstance(messages, list):
        raise ValueError(f"{path}: messages: expected a list, found {type(messages).__name__}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'{path}: message {number}: expected {{"role": ..., "content": TEXT}}, found '
                             f"{shown(message)}")
        check_whole(message["content"], f"{path}: message {number}")
    has_system = bool(messages) and messages[0].get("role") == "system"
    system = messages[0]["content"] if has_system else DEFAULT_SYSTEM
    turns = messages[has_system:]
    for number, message in enumerate(turns):
        role = ("user", "assistant")[number % 2]
        if message.get("role") != role:
            raise ValueError(f"{path}: message {number + 1 + has_system}: expected role {role!r}, found "
                             f"{shown(message.get('role'))}")
    if len(turns) % 2:
        raise ValueError(f"{path}: expected an answer to each question, found none to the last one")
    contents = [message["content"] for message in turns]
    return system, list(zip(contents[::2], contents[1::2]))


def _value(text):
    """What a user means by a setting's value: a number, True or true, none, a list of strings, or a bare word."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return as_number(text)
    except ValueError:
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(value, (int, float)) else value  # 1_000 and 0x10 are no numbers anywhere else


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _turns(count):
    return f"{count} turn{'' if count == 1 else 's'}"
