"""
Tools in Qwen's ReAct form: definitions and messages of OpenAI's API become a ChatML conversation, and what the model
writes becomes a thought and a call, or an answer.

The instruction with the tools goes in front of a question. The model writes `Thought: ...`, then either
`Action: NAME` and `Action Input: ARGUMENTS`, or `Final Answer: ...`; a tool's result goes in as `Observation: ...`
behind its call, and the model goes on in the same message. Templates and rules are those of `parse_messages` and
`parse_response` in `openai_api.py` of github.com/QwenLM/Qwen, byte for byte for `functions`. Everything here is text:
what a message or a tool says can't become a control token, see `text.chatml.write_prompt`.

    messages, is_open = react_messages(request.messages, request.tools)
    prompt = write_prompt(tokenizer, messages, continue_last=bool(is_open))
    stream = ReactStream(is_open)
"""
import re
from enum import IntEnum
from typing import NamedTuple

from qwen_mindspore.common.text import shown
from qwen_mindspore.text.tools import LONGEST_NAME, MessageError, Tool, json_text, read_messages, read_tools, stripped

__all__ = ["INSTRUCTION", "PLACEMENTS", "SENTENCE", "STOP_WORD", "TOOL", "Event", "MessageError", "Open", "Parsed",
           "ReactStream", "Tool", "parse_response", "react_messages", "read_tools"]

STOP_WORD = "Observation:"  # what the model would write next is the tool's to say

TOOL = ("{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? {description} "
        "Parameters: {parameters}")

# What Qwen's examples/react_demo.py puts behind the parameters.
SENTENCE = " Format the arguments as a JSON object."

INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""

ANSWERED = "Thought: I now know the final answer.\nFinal Answer: {content}"  # with a stop, which INSTRUCTION has not

PLACEMENTS = ("qwen", "last_query")


class Open(IntEnum):
    """
    Whether the last assistant's message stays open, and where in it the model goes on. As a truth value: whether.
    True is THOUGHT, the usual case.
    """

    NO = 0
    THOUGHT = 1  # behind `Thought:`, after a tool's result
    ANSWER = 2  # within an answer that was begun
    ARGUMENTS = 3  # behind a call without its result


def react_messages(messages, tools=(), placement="qwen", format_sentence=False):
    """
    Write a conversation with tools as one of system, user and assistant.

    Contents lose the newlines before and the white space behind them. Calls, results and answers that follow a question
    become one assistant's message. Several calls of a message, with their results, become what the same calls one
    after another would. Several users' messages in a row are joined by newlines, and so are several system's at the
    beginning; with tools that came as `functions` they are refused, as by Qwen. Without tools a system message alone
    will do.

    Args:
        messages (list[dict]): {"role", "content"} of OpenAI's API, of either generation: roles system or developer (at
            the beginning alone), user, assistant with `function_call` or `tool_calls`, function, tool with
            `tool_call_id`; content is text, parts {"type": "text", "text": ...}, which are joined as they are, or None.
        tools: See `read_tools`. Without tools there is no instruction, and answers stand for themselves.
        placement ("qwen" | "last_query"): Which question the instruction precedes: as in Qwen's server the last one
            that has an answer, or part of one, and what is asked now only where there is no other; or always the last
            one. With the second the prompt begins alike before and after a tool's result, so that what the model has
            computed for it serves again.
        format_sentence (bool): Add `SENTENCE` to each tool whose description lacks it.

    Returns:
        (list[dict], Open), {"role", "content"} as `text.chatml.write_prompt` takes them, with a system message if there
        was one; and whether the last of them stays open, as it does if the last message is not a user's.

    Raises:
        MessageError: What is no such conversation or tool.
        ValueError: An unknown placement.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement: expected one of {', '.join(PLACEMENTS)}, found {shown(placement)}")
    tools = read_tools(tools)
    is_strict = any(tool.api == "functions" for tool in tools)
    system, steps = read_messages(messages, is_strict)
    if not steps:
        if tools:
            raise MessageError("messages", "expected at least one user's message, found none")
        return system, Open.NO
    turns = _fold(steps, bool(tools), is_strict)
    is_open = _opening(steps[-1])
    if tools:
        answered = turns[:-1] if turns[-1][0] == "user" and len(turns) > 1 and placement == "qwen" else turns
        question = [turn for turn in answered if turn[0] == "user"][-1]
        question[1] = f"{_instruction(tools, format_sentence)}\n\nQuestion: {question[1]}"
    written = [{"role": role, "content": stripped(text) if is_open else text} for role, text in turns]
    return [*system, *written], is_open


def _opening(last):
    if last.role == "user":
        return Open.NO
    if last.role == "function":
        return Open.THOUGHT
    return Open.ANSWER if last.call is None else Open.ARGUMENTS


def _fold(steps, has_tools, is_strict):
    """[[role, text], ...], users and assistants by turns. Of the texts alone the parts are stripped."""
    turns = []
    for number, (role, content, call, param) in enumerate(steps):
        last = turns[-1][0] if turns else None
        if role == "user" and last != "user":
            turns.append([role, content])
        elif role == "user":
            if is_strict:
                raise MessageError(f"{param}.role", "expected an assistant's message after a user's, found a second "
                                   "user's")
            turns[-1][1] = stripped(f"{turns[-1][1]}\n{content}")
        elif role == "function":
            if last != "assistant":
                raise MessageError(f"{param}.role", "expected an assistant's message before a tool's result")
            turns[-1][1] += f"\nObservation: {content}" + "\nThought:" * (number == len(steps) - 1)
        elif last is None:
            raise MessageError(f"{param}.role", "expected a user's message before an assistant's")
        elif last == "user":
            turns.append([role, stripped(_said(content, call, has_tools))])
        else:
            turns[-1][1] += "\n" + _said(content, call, has_tools)
    return [[role, stripped(text)] for role, text in turns]


def _said(content, call, has_tools):
    """An assistant's message as the model would have written it."""
    if call is None:
        return ANSWERED.format(content=content) if has_tools else content
    thought = content if content.startswith("Thought:") else f"Thought: {content}"
    return f"{thought}\nAction: {call[0]}\nAction Input: {call[1]}"


def _instruction(tools, format_sentence):
    texts = []
    for tool in tools:
        text = TOOL.format(name=tool.name, human=tool.name if tool.human is None else tool.human,
                           description=tool.description, parameters=json_text(tool.parameters, tool.name))
        texts.append(text + SENTENCE * (format_sentence and SENTENCE.strip() not in tool.description))
    return INSTRUCTION.format(tools="\n\n".join(texts), names=", ".join(tool.name for tool in tools))


class Parsed(NamedTuple):
    """
    A whole answer.

    Fields:
        thought (str): What stands before the call or the answer, without its label.
        name, arguments (str | None): Of the call; None if there is none.
        content (str): The answer. Of a call: the thought, as Qwen's server gives it.
    """

    thought: str
    name: str | None
    arguments: str | None
    content: str


def parse_response(text, is_open=False):
    """
    Read a whole answer as Qwen's server does, with what it overlooks: a call on the first line; that a second call or
    thought ends the arguments; `Final Answer:` without a space behind it. `ReactStream` sees these. Of several final
    answers the last counts here, and there the first, which a client has by then.

    Args:
        text (str): What the model has written, up to `Observation:` or to its end.
        is_open (Open | bool): Where it went on; the rules are the same, wherever that was.

    Returns:
        Parsed.
    """
    action, given, seen = (text.find(f"\n{label}:") for label in ("Action", "Action Input", "Observation"))
    name = text[action + len("\nAction:"):given].strip() if 0 <= action < given else ""
    if name:
        end = len(text) if seen < 0 else seen
        thought = text[:action].partition("Thought: ")[2] if "Thought: " in text[:action] else text[:action]
        return Parsed(thought.strip(), name, text[given + len("\nAction Input:"):end].strip(), thought.strip())
    before, label, answer = text.rpartition("\nFinal Answer: ")
    if not label:
        return Parsed("", None, None, text)
    return Parsed(before.strip().removeprefix("Thought:").strip(), None, None, answer)


class Event(NamedTuple):
    """
    A piece of an answer.

    Fields:
        kind (str): "thought"; "call", whose text is the tool's name; "arguments"; "content", which is the answer.
        text (str): The next of it.
    """

    kind: str
    text: str


CALL, INPUT, ANSWER, THOUGHT = "\nAction:", "Action Input:", "\nFinal Answer:", "\nThought:"
KINDS = {"preface": "content", "thought": "thought", "arguments": "arguments", "content": "content"}
ENDS = {  # the markers that end each part
    "preface": (THOUGHT, CALL, ANSWER),
    "thought": (CALL, ANSWER),
    "arguments": ("\nObservation:", THOUGHT, CALL, ANSWER),
    "content": (),
}
BEGUN = {CALL: "arguments", ANSWER: "content", THOUGHT: "thought"}
BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


class ReactStream:
    """
    An answer's text as it comes, taken apart: a thought, then a call and its arguments, or an answer.

    Parts come without white space around them, and as soon as they are certain: what waits is white space, and what may
    begin a marker (`Action:`, `Final Answer:`, ... at the beginning of a line). However a text is cut into pieces, the
    events of each kind join to the same. Nothing comes behind a call's arguments: there is one call a turn.

    - A text that begins with none of the markers is an answer.
    - An `Action:` without a name on its line, or with no `Action Input:` on the next, is a part of the thought.
    - A thought that nothing follows is all there is of an answer: at the end it comes as content, too.

    Args:
        is_open (Open | bool): Where the text goes on, see `react_messages`.

    Attributes:
        name (str | None): Of the tool that was called.
    """

    def __init__(self, is_open=False):
        self.name = None
        self._part = ("preface", "thought", "content", "arguments")[Open(is_open)]
        # Markers begin with a newline; so does a text that begins with one.
        self._held = "" if is_open else "\n"
        self._is_fresh, self._has_content = True, False
        self._thought, self._events = [], []

    def put(self, text):
        """
        Add a piece.

        Args:
            text (str): The next piece, of any length.

        Returns:
            list[Event], what is certain now.
        """
        return self._go_on(text, final=False)

    def end(self):
        """
        The text is over.

        Returns:
            list[Event], what was held back.
        """
        events = self._go_on("", final=True)
        if self._part == "thought" and self._thought and not self._has_content:
            events.append(Event("content", "".join(self._thought)))
        self._part = None
        return events

    def _go_on(self, text, final):
        if self._part:
            self._held += text
        while self._part and self._advance(final):
            pass
        events, self._events = self._events, []
        return events

    def _advance(self, final):
        """Give out what is certain of a part; whether another one begins behind it."""
        start, marker, call = self._end_of_part(final)
        text = self._held[:start].rstrip()
        self._give(text.lstrip() if self._is_fresh else text)
        if marker is None:
            self._held = self._held[len(text):]
            return False
        if self._part == "arguments":
            self._part, self._held = None, ""
            return False
        self._held = self._held[call.end if call else start + len(marker):]
        self._part, self._is_fresh = BEGUN[marker], True
        if call:
            self.name = call.name
            self._events.append(Event("call", self.name))
        return True

    def _give(self, text):
        if not text:
            return
        kind = KINDS[self._part]
        if kind == "content":
            text = f"\n{text}" if self._is_fresh and self._has_content else text
            self._has_content = True
        if kind == "thought":
            self._thought.append(text)
        self._is_fresh = False
        self._events.append(Event(kind, text))

    def _end_of_part(self, final):
        """(where what is certain of the part ends, the marker there, the call that it begins)."""
        held, ends = self._held, ENDS[self._part]
        for start in (match.start() for match in re.finditer("\n", held)):
            marker = next((marker for marker in ends if held.startswith(marker, start)), None)
            if marker == CALL and self._part != "arguments":
                call = _call_at(held, start + len(CALL), final)
                if call is _NO_CALL:
                    continue
                return start, call and marker, call
            if marker:
                return start, marker, None
        line = held.rfind("\n")
        is_begun = line >= 0 and any(marker.startswith(held[line:]) for marker in ends)
        return line if is_begun and not final else len(held), None, None


class _Call(NamedTuple):
    name: str
    end: int


_NO_CALL = _Call("", 0)


def _call_at(text, start, final):
    """The call whose name begins there, and where its arguments do; None while nobody knows."""
    name, newline, rest = text[start:].partition("\n")
    blank = BLANK_LINES.match(rest)
    rest = rest[blank.end():] if blank else rest
    end = len(text) - len(rest)
    if rest.startswith(INPUT) and name.strip() and end - start <= LONGEST_NAME:
        return _Call(name.strip(), end + len(INPUT))
    may_be = not newline or (name.strip() and (INPUT.startswith(rest) or not rest.strip()))
    return None if may_be and not final and len(text) - start <= LONGEST_NAME + len(INPUT) else _NO_CALL
