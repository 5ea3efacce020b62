"""From a row of a file to its answer: the prompt of the row, its settings, and continuous batching on the engine."""
import math
from dataclasses import dataclass
from typing import NamedTuple

from qwen_mindspore.batch.journal import ANSWER, ERROR
from qwen_mindspore.batch.records import PROMPTS
from qwen_mindspore.common.json_text import NamedTwice, Number, parse_exact_json
from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.common.text import check_whole, is_blank, listed, shown
from qwen_mindspore.generate.answers import Answers, prompt_of, text_of
from qwen_mindspore.generate.settings import IN_FILES, from_text
from qwen_mindspore.generate.unavailable import NEUTRAL
from qwen_mindspore.text.chatml import DEFAULT_SYSTEM, as_messages

__all__ = ["Result", "RowOptions", "Worker", "answer_all"]

# Columns that are settings -> their names here; OpenAI's among them.
OVERRIDES = {**{name: name for name in ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
                                        "repetition_penalty", "seed", "stop_words", "stop_words_ids", "chat_format",
                                        "max_window_size", "eos_token_id", "min_p", "min_new_tokens", "ignore_eos",
                                        "presence_penalty", "frequency_penalty", "logit_bias")},
             "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens",
             "stop": "stop_words", "stop_token_ids": "stop_token_ids"}
# transformers' and vLLM's columns that no data have but for an answer.
OF_OTHERS = ("num_beams", "num_beam_groups", "num_return_sequences", "min_length", "max_length", "typical_p", "top_a",
             "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "diversity_penalty", "length_penalty",
             "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids",
             "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
             "forced_eos_token_id", "sequence_bias", "stop_strings", "guidance_scale", "prompt_logprobs",
             "use_beam_search", "include_stop_str_in_output")
# Columns that ask for what there is not -> the values that don't; OpenAI's first.
REFUSED = {"n": (1,), "best_of": (1,), "logprobs": (False, 0), "top_logprobs": (0,),
           "tools": ([],), "functions": ([],), "tool_choice": ("none",),
           "function_call": ("none",), "response_format": ({"type": "text"},), "suffix": ("",), "echo": (False,),
           **{name: NEUTRAL.get(name, (False, 0)) for name in OF_OTHERS},
           "num_return_sequences": (1,), "max_length": (), "bad_words": ([],), "skip_special_tokens": (True,),
           **dict.fromkeys(("allowed_token_ids", "truncate_prompt_tokens", "structured_outputs", "guided_json",
                            "guided_regex", "guided_choice", "guided_grammar", "n_predict"), ()),
           "repeat_penalty": (1,), **dict.fromkeys(("extra_body", "sampling_params", "generation_config"), ({},))}
ADVICE = {"max_length": "write max_new_tokens", "n_predict": "write max_new_tokens",
          "repeat_penalty": "write repetition_penalty", "stop_strings": "write stop_words",
          **dict.fromkeys(("extra_body", "sampling_params", "generation_config"), "write its values as columns")}


@dataclass(frozen=True)
class RowOptions:
    """
    How a row is read.

    Attributes:
        prompt_column (str): The column of the prompt or the messages. Default: `prompt`, `messages` or `query`,
            whichever a row has.
        id_column (str): The column of the id, which need not be there.
        system (str): The system message of a conversation that has none.
        parse_special (bool): Control tokens that stand in a prompt are control tokens; only where `chat_format` is raw,
            where they are text otherwise.
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
        self.engine, self.tokenizer, self.settings, self.options = engine, tokenizer, settings, options
        self._answers = Answers(engine, tokenizer)
        self._rows = {}  # number -> the Record and what the output repeats of it, of rows at work

    @property
    def tokens(self):
        """See the class."""
        return self._answers.tokens

    @property
    def has_room(self):
        """See the class: a newcomer waits behind each row that is being answered, so no place stays empty."""
        return len(self._rows) < 2 * self.engine.max_batch

    @property
    def has_work(self):
        """See the class."""
        return self._answers.has_work

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
            self._answers.add(prompt, settings, record.number)
        except ValueError as error:
            return [self._error(record, str(error))]
        self._rows[record.number] = record, given
        return []

    def step(self):
        """
        Generate the next token of the rows at work.

        Returns:
            list[Result], the rows that finished.
        """
        return [self._finish(answer, *self._rows.pop(answer.id)) for answer in self._answers.step()
                if answer.finish_reason]

    def _finish(self, answer, record, given):
        # What is wrong with the row's numbers is the row's; anything else, as memory that is full, may pass.
        if isinstance(answer.error, (ArithmeticError, ValueError)):
            return self._error(record, str(answer.error))
        if answer.error:
            raise answer.error
        return Result(record.number, ANSWER, {
            "id": self._id(record), **given, "response": answer.text, "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens, "finish_reason": answer.finish_reason})

    def _error(self, record, message):
        row = record.source if record.fields is None else record.fields
        return Result(record.number, ERROR, {"row": record.number, "id": self._id(record), "error": message,
                                             "input": row})

    def _id(self, record):
        given = (record.fields or {}).get(self.options.id_column)
        # A table may hold an infinity, which JSON has not.
        is_none = given in (None, "") or (isinstance(given, float) and not isinstance(given, Number)
                                          and not math.isfinite(given))
        return record.number if is_none else given

    def _prompt(self, fields, settings):
        """(what the output repeats of the row, ids of its prompt); ValueError where there is no prompt to answer."""
        name, value = self._given(fields)
        if name == "messages" or isinstance(value, list):
            given = {"messages": _parsed(value)}
            messages = _checked_messages(given["messages"])
            query = messages[-1]["content"]
            if messages[0]["role"] != "system" or not messages[0]["content"]:
                history = messages[messages[0]["role"] == "system":]
                messages = [{"role": "system", "content": self.options.system}, *history]
        else:
            system, history, query = fields.get("system") or None, _parsed(fields.get("history") or None), value
            given = {"prompt": query}
            given |= {name: part for name, part in (("system", system), ("history", history)) if part is not None}
            _check_text("system", system or "")
            _check_history(history)
            messages = [*as_messages(history, system or self.options.system), {"role": "user", "content": query}]
        _check_text(name, query)
        if is_blank(query):
            raise ValueError(f"{name} is empty")
        return given, self._encode(messages, given, settings)

    def _given(self, fields):
        """(name, value) of the column that holds the row's prompt."""
        column = self.options.prompt_column
        names = [name for name in ([column] if column else PROMPTS) if fields.get(name) is not None]
        filled = [name for name in names if fields[name] != ""] or names
        if not filled:
            nulls = [name for name in ([column] if column else PROMPTS) if name in fields]
            if nulls:
                raise ValueError(f"no {' or '.join(nulls)}: found null")
            advice = ": of OpenAI's batch files, give what stands in body as columns" if "body" in fields else ""
            raise ValueError(f"no {column or ' or '.join(PROMPTS)}, found {listed(fields) or 'nothing'}{advice}")
        if len(filled) > 1:
            raise ValueError(f"both {' and '.join(filled)}: --prompt_column says which one to answer")
        return filled[0], fields[filled[0]]

    def _encode(self, messages, given, settings):
        """The ids of the prompt."""
        if settings.chat_format == "raw":
            if list(given) != ["prompt"]:
                raise ValueError(f"{' and '.join(name for name in given if name != 'prompt')}: only for a chat model, "
                                 "and this one continues text (chat_format raw)")
            messages = messages[-1:]
        return prompt_of(messages, settings, self.tokenizer, self.engine.config,
                         self.options.parse_special and settings.chat_format == "raw")

    def _settings(self, record):
        """The row's settings: everyone's, but for those that it has a column for."""
        columns = {name: value for name, value in record.fields.items() if value not in (None, "") and name not in
                   (self.options.prompt_column, self.options.id_column)}
        changes = {}
        for column, name in OVERRIDES.items():
            if column in columns:
                value = _setting(column, name, columns[column])
                if changes.get(name, value) != value:
                    others = [other for other in OVERRIDES if OVERRIDES[other] == name and other in columns]
                    raise ValueError(f"{' and '.join(others)}: they mean the same, and differ: leave one of them")
                changes[name] = value
        for column, neutral in REFUSED.items():
            if column in columns and from_text(column, columns[column]) not in neutral:
                advice = ADVICE.get(column, "--prompt_column says if that is the prompt")
                raise ValueError(f"{column}: not implemented, expected {''.join(f'{value!r} or ' for value in neutral)}"
                                 f"nothing, found {shown(columns[column])}; {advice}")
        ends = [*changes.pop("stop_words_ids", ()),
                *((token,) for name in ("eos_token_id", "stop_token_ids") for token in changes.pop(name, ()))]
        settings = self.settings.override(**changes)
        if ends:  # in addition to everyone's, which are the model's own
            settings = settings.override(stop_words_ids=[*settings.stop_words_ids, *ends])
        return settings if "seed" in changes else settings.of_row(record.number)


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


def _checked_messages(messages):
    """
    Messages with their contents as text; ValueError unless they are a system message or none, then those of user and
    assistant by turns, the user last.
    """
    expected = ("messages: expected a list of {role, content}: system or not, then user and assistant by turns, "
                "user last")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{expected}; found {shown(messages)}")
    roles = [message.get("role") for message in messages]
    turns = roles[roles[:1] == ["system"]:]
    if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError(f"{expected}; found {listed(roles) or 'none'}")
    messages = [{"role": message["role"], "content": text_of(message.get("content"))} for message in messages]
    for number, message in enumerate(messages, 1):
        check_whole(message["content"], f"messages: the content of message {number}")
    return messages


def _check_text(name, value):
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {shown(value)}")  # and no TypeError: it is a bad row
    check_whole(value, name)


def _check_history(history):
    if history is None:
        return
    is_turns = isinstance(history, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history)
    if not is_turns:
        raise ValueError(f"history: expected a list of [question, answer], found {shown(history)}")
    for number, turn in enumerate(history, 1):
        for text in turn:
            check_whole(text, f"history: turn {number}")


def _parsed(value):
    """A list from a column; in a CSV it stands as JSON. ValueError for JSON that isn't."""
    if not isinstance(value, str):
        return value
    try:
        return parse_exact_json(value)
    except NamedTwice:
        raise
    except ValueError:
        raise ValueError(f"expected JSON, found {shown(value)}") from None


def _setting(column, name, value):
    """The value of a setting; in a CSV it stands as JSON, or a stop word as it is. ValueError names the column."""
    value = _stop_words(value) if name == "stop_words" else from_text(name, value)
    kind = IN_FILES["eos_token_id" if name == "stop_token_ids" else name]
    return None if value is None else read_as(kind, column, value)


def _stop_words(value):
    if not isinstance(value, str):
        return value
    try:
        return parse_exact_json(value) if value.startswith("[") else (value,)
    except ValueError:
        return (value,)  # "[" may begin a word, too
