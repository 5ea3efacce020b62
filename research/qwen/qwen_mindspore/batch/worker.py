"""From a row of a file to its answer: the prompt of the row, its settings, and continuous batching on the engine."""
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qwen_mindspore.batch.journal import ANSWER, ERROR
from qwen_mindspore.common.text import shown
from qwen_mindspore.generate.engine import Request
from qwen_mindspore.text.chatml import DEFAULT_SYSTEM, get_stop_words_ids, make_context
from qwen_mindspore.text.stream import TextStream

__all__ = ["Result", "RowOptions", "Worker", "answer_all"]

PROMPTS = ("prompt", "messages", "query")
OVERRIDES = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop_words")


@dataclass(frozen=True)
class RowOptions:
    """
    How a row is read.

    Attributes:
        prompt_column (str): The column of the prompt or the messages. Default: `prompt`, `messages` or `query`,
            whichever a row has.
        id_column (str): The column of the id, which need not be there.
        system (str): The system message of a conversation that has none.
        parse_special (bool): Control tokens that stand in a prompt are control tokens; only where `chat_format` is raw.
    """

    prompt_column: str | None = None
    id_column: str = "id"
    system: str = DEFAULT_SYSTEM
    parse_special: bool = False


class Result(NamedTuple):
    """A finished row: `content` is the line of the output (`kind` ANSWER) or of the errors (ERROR)."""

    number: int
    kind: str
    content: dict


class Worker:
    """
    Answers rows, several at once.

    Args:
        engine (Engine): Generates.
        tokenizer (QwenTokenizer): Its tokenizer.
        settings (GenerationSettings): Those of every row. Where they sample, each row draws with a seed made of theirs
            and the row's number, so that an answer does not depend on what else is answered when.
        options (RowOptions): How rows are read.

    Attributes:
        tokens (int): Generated so far.
        has_room (bool): The engine can take another row without leaving it to wait for long.
        has_work (bool): Rows are being answered.
    """

    def __init__(self, engine, tokenizer, settings, options):
        self.engine, self.tokenizer, self.options = engine, tokenizer, options
        ends = get_stop_words_ids("chatml", tokenizer) if settings.chat_format == "chatml" else []
        self.settings = settings.override(stop_words_ids=[*settings.stop_words_ids, *ends, [tokenizer.eod_id]])
        self.tokens = 0
        self._active = {}  # number -> Answer

    @property
    def has_room(self):
        """See the class: a newcomer waits behind each row that is being answered, so no place stays empty."""
        return len(self._active) < 2 * self.engine.max_batch

    @property
    def has_work(self):
        """See the class."""
        return bool(self._active)

    def add(self, record):
        """
        Take on a row.

        Args:
            record (Record): It.

        Returns:
            list[Result], empty, or the error of a row that can't be answered.
        """
        try:
            if record.error:
                raise ValueError(record.error)
            settings = self._settings(record)
            given, prompt = self._prompt(record.fields, settings)
            self.engine.add(Request(prompt, settings, record.number))
        except ValueError as error:
            return [self._error(record, str(error))]
        text = TextStream(self.tokenizer, settings.stop_words, settings.stop_words_ids)
        self._active[record.number] = Answer(record, given, len(prompt), settings.chat_format == "chatml", text)
        return []

    def step(self):
        """
        Generate the next token of the rows at work.

        Returns:
            list[Result], the rows that finished.
        """
        results = []
        for output in self.engine.step():
            answer = self._active.get(output.id)
            if answer is None:  # cancelled: its text is complete
                continue
            if output.token is not None:
                self.tokens += 1
                answer.tokens += 1
                answer.text.put(output.token)
            if output.error is not None:
                results.append(self._failed(self._active.pop(output.id), output.error))
            elif output.finish_reason or answer.text.stopped:
                if not output.finish_reason:
                    self.engine.cancel(output.id)
                results.append(self._finish(self._active.pop(output.id), output.finish_reason))
        return results

    def _failed(self, answer, error):
        # What is wrong with the row's numbers is the row's; anything else, as memory that is full, may pass.
        if not isinstance(error, (ArithmeticError, ValueError)):
            raise error
        return self._error(answer.record, str(error))

    def _finish(self, answer, reason):
        answer.text.end()
        return Result(answer.record.number, ANSWER, {
            "id": self._id(answer.record), **answer.given,
            "response": answer.text.text.strip() if answer.is_chat else answer.text.text,
            "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens,
            "finish_reason": "stop" if answer.text.stopped else reason})

    def _error(self, record, message):
        row = record.source if record.fields is None else record.fields
        return Result(record.number, ERROR, {"row": record.number, "id": self._id(record), "error": message,
                                             "input": row})

    def _id(self, record):
        given = (record.fields or {}).get(self.options.id_column)
        return record.number if given in (None, "") else given

    def _prompt(self, fields, settings):
        """(what the output repeats of the row, ids of its prompt); ValueError where there is no prompt to answer."""
        name, value = self._given(fields)
        if name == "messages" or isinstance(value, list):
            messages = _parsed(value)
            system, history, query = split_messages(messages)
            given = {"messages": messages}
        else:
            system, history, query = fields.get("system") or None, _parsed(fields.get("history") or None), value
            given = {"prompt": query}
            given |= {name: part for name, part in (("system", system), ("history", history)) if part is not None}
            _check_text("system", system or "")
            _check_history(history)
        _check_text(name, query)
        if not query.strip():
            raise ValueError(f"{name} is empty")
        return given, self._encode(query, history, system, given, settings)

    def _given(self, fields):
        """(name, value) of the column that holds the row's prompt."""
        column = self.options.prompt_column
        names = [name for name in ([column] if column else PROMPTS) if fields.get(name) is not None]
        filled = [name for name in names if fields[name] != ""] or names
        if not filled:
            raise ValueError(f"no {column or ' or '.join(PROMPTS)}, found {', '.join(map(str, fields)) or 'nothing'}")
        if len(filled) > 1:
            raise ValueError(f"both {' and '.join(filled)}: --prompt_column says which one to answer")
        return filled[0], fields[filled[0]]

    def _encode(self, query, history, system, given, settings):
        """The ids of the prompt."""
        if settings.chat_format == "raw":
            if list(given) != ["prompt"]:
                raise ValueError(f"{' and '.join(name for name in given if name != 'prompt')}: only for a chat model, "
                                 "and this one continues text (chat_format raw)")
            return self.tokenizer.encode(query, allowed_special="all" if self.options.parse_special else set())
        length = self.engine.config.seq_length
        answer = min(settings.max_new_tokens, length // 4)  # what history leaves room for, as in a chat
        return make_context(self.tokenizer, query, history, system or self.options.system, settings.max_window_size,
                            max_length=length - answer)[1]

    def _settings(self, record):
        """The row's settings: everyone's, but for those that it has a column for."""
        changes = {name: _setting(name, record.fields[name]) for name in OVERRIDES
                   if name != self.options.prompt_column and record.fields.get(name) not in (None, "")}
        settings = self.settings.override(**changes)
        if settings.do_sample and "seed" not in changes:
            seeds = np.random.SeedSequence([settings.seed or 0, record.number])
            settings = settings.override(seed=int(seeds.generate_state(1)[0]))
        return settings


@dataclass
class Answer:
    """A row at work."""

    record: object
    given: dict
    prompt_tokens: int
    is_chat: bool
    text: TextStream
    tokens: int = 0


def answer_all(worker, records):
    """
    Answer rows; each one that finishes makes way for the next.

    Args:
        worker (Worker): Does it.
        records (Iterable[Record]): The rows; taken one by one, as there is room.

    Yields:
        (list[Result], int): rows that have finished, and how many tokens were generated since the last time.
    """
    records = iter(records)
    is_more, tokens = True, 0
    while is_more or worker.has_work:
        results = []
        while is_more and worker.has_room:
            record = next(records, None)
            is_more = record is not None
            if is_more:
                results += worker.add(record)
            if results:  # a million bad rows must not pile up here
                break
        if worker.has_work:
            results += worker.step()
        yield results, worker.tokens - tokens
        tokens = worker.tokens


def split_messages(messages):
    """
    Take a conversation apart.

    Args:
        messages (list[dict]): {"role": ..., "content": ...} of an optional system message, then of user and assistant by
            turns, the user last.

    Returns:
        (str | None, list[tuple[str, str]], str), the system message, the earlier turns, the last question.

    Raises:
        ValueError: Anything else.
    """
    expected = "messages: expected a list of {role, content}: system or not, then user and assistant by turns, user last"
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{expected}; found {shown(messages)}")
    roles = [message.get("role") for message in messages]
    has_system = roles[:1] == ["system"]
    turns = roles[has_system:]
    if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError(f"{expected}; found {', '.join(map(str, roles)) or 'none'}")
    contents = [message.get("content") for message in messages]
    for content in contents:
        _check_text("content", content)
    system, contents = (contents[0], contents[1:]) if has_system else (None, contents)
    return system, list(zip(contents[:-1:2], contents[1::2])), contents[-1]


def _check_text(name, value):
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {shown(value)}")  # noqa: TRY004  it is a bad row


def _check_history(history):
    if history is None:
        return
    is_turns = isinstance(history, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history)
    if not is_turns:
        raise ValueError(f"history: expected a list of [question, answer], found {shown(history)}")


def _parsed(value):
    """A list from a column; in a CSV it stands as JSON. ValueError for JSON that isn't."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"expected JSON, found {shown(value)}") from None


def _setting(name, value):
    """The value of a setting; in a CSV it stands as JSON, or a stop word as it is."""
    if not isinstance(value, str):
        return value
    if name == "stop_words" and not value.startswith("["):
        return (value,)
    try:
        return json.loads(value.lower() if name == "do_sample" else value)
    except ValueError:
        return value  # `override` refuses it by name
