"""Talking to Qwen: answers at once, as they grow, or for many conversations together.

    response, history = chat(model, tokenizer, "Hello!")
    response, history = chat(model, tokenizer, "And then?", history)
"""
import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType

from qwen_mindspore.common.text import check_whole, is_blank, shown
from qwen_mindspore.generate.answers import Answers, prompt_of, room_of
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.generate.vocabulary import check_vocabulary
from qwen_mindspore.text.chatml import (
    DEFAULT_SYSTEM,
    ChatMLTokenizer,
    as_messages,
    decode_tokens,
    get_stop_words_ids,
    make_context,
)

__all__ = ["ChatMLTokenizer", "Reply", "chat", "chat_batch", "chat_settings", "chat_stream", "decode_tokens",
           "get_stop_words_ids", "make_context", "stream_reply"]


def chat(model, tokenizer, query, history=None, system=DEFAULT_SYSTEM, append_history=True, settings=None,
         **generation):
    """Answer one question of a conversation.

    Args:
        model (QwenForCausalLM): a chat model with `use_past`. What its cache still holds of the conversation is not
            computed again. It belongs to one thread at a time.
        tokenizer (QwenTokenizer): the model's.
        query, history, system: see `make_context`. History is trimmed by whole turns to what the model holds.
        append_history (bool): whether the history that is returned has this turn.
        settings (GenerationSettings, optional): default: what the model's config and the generation_config.json
            beside its checkpoint say.
        **generation: settings that differ, see `GenerationSettings`. Stop words are in addition to ChatML's.
            `chat_format="raw"` has a text continued, by whatever model, without history and system message: control
            tokens typed in it stay text, and the answer ends at `<|endoftext|>` and the stop words given.

    Returns:
        (str, list[tuple[str, str]]), the response, in ChatML without white space around it, and a new history; the one
        given stays as it was.

    Raises:
        ValueError: a base model and no `chat_format` given; a question that the model can't hold; a setting that does
            not exist or a value that it can't have; a turn of the history that is not a pair; a vocabulary that is not
            the model's.
        FloatingPointError: the logits are not finite.
    """
    for reply in stream_reply(model, tokenizer, query, history, system, settings, **generation):
        pass
    turn = [(query, reply.text)] if append_history else []
    return reply.text, [*(history or ()), *turn]


def chat_stream(model, tokenizer, query, history=None, system=DEFAULT_SYSTEM, settings=None, **generation):
    """Answer as `chat` does, while the answer grows. Closing the iterator early ends the work.

    Args:
        see `chat`.

    Returns:
        Iterator[str], at least one text, each the whole answer so far: it begins with the one before, and ends with
        whole characters. The last one is the response of `chat`.

    Raises:
        ValueError: see `chat`; at once.
    """
    return _texts(stream_reply(model, tokenizer, query, history, system, settings, **generation))


def chat_batch(model, tokenizer, queries, histories=None, system=DEFAULT_SYSTEM, append_history=True, settings=None,
               **generation):
    """Answer one question in each of many conversations, as `chat` would one by one, but together.

    Args:
        queries (list[str]): one for each conversation.
        histories (list[list[tuple[str, str]] | None], optional): as many. Default: new conversations.
        system (str | list[str]): one for all, or as many.
        other arguments: see `chat`.

    Returns:
        (list[str], list[list[tuple[str, str]]]), the responses and the new histories.

    Raises:
        ValueError: see `chat`, the number of the conversation in front (from 0); lists of different lengths; a text
            where a list of them is expected.
    """
    queries = _several("queries", queries, "of texts", "chat answers one")
    count = len(queries)
    histories = [None] * count if histories is None else _several("histories", histories, "of histories")
    systems = [system] * count if isinstance(system, str) else _several("system", system, "of texts, or one text")
    for name, found in (("histories", histories), ("system", systems)):
        if len(found) != count:
            raise ValueError(f"{name}: expected {count}, one for each query, found {len(found)}")
    settings = chat_settings(model.config, settings, **generation)
    check_vocabulary(tokenizer, model.config.vocab_size)
    prompts = []
    for number, conversation in enumerate(zip(queries, histories, systems)):
        try:
            prompts.append(_prompt(model.config, tokenizer, settings, *conversation))
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from None
    texts = [""] * count
    for number, reply in _replies(model, tokenizer, prompts, settings):
        texts[number] = reply.text
    turns = [[(query, text)] if append_history else [] for query, text in zip(queries, texts)]
    return texts, [[*(history or ()), *turn] for history, turn in zip(histories, turns)]


@dataclass(frozen=True)
class Reply:
    """
    An answer so far.

    Attributes:
        text (str): in ChatML without white space around it.
        tokens (int): how many it took, those of the stop word included.
        finish_reason (str | None): None while it grows; "stop" at a stop word; "length" where `max_new_tokens`, or what
            the model holds, cut it off.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


def stream_reply(model, tokenizer, query, history=None, system=DEFAULT_SYSTEM, settings=None, **generation):
    """What `chat_stream` does, with more to tell: Iterator[Reply], one a token. Args and errors as there."""
    settings = chat_settings(model.config, settings, **generation)
    check_vocabulary(tokenizer, model.config.vocab_size)
    prompt = _prompt(model.config, tokenizer, settings, query, history, system)
    return _alone(_replies(model, tokenizer, [prompt], settings))


def chat_settings(config, settings=None, **generation):
    """The settings of a chat.

    Args:
        config (QwenConfig): the model's.
        settings, **generation: see `chat`.

    Returns:
        GenerationSettings.

    Raises:
        ValueError: a base model and no `chat_format` given; see also `GenerationSettings.load`.
    """
    if settings is None:
        # YAMLs of the first MindFormers port don't say, and its chat took ChatML.
        if getattr(config, "chat_format", None) is None:
            config = copy.copy(config)
            config.chat_format = "chatml"
        settings = GenerationSettings.load(config, **generation)
    else:
        settings = settings.override(**generation)
    if settings.chat_format != "chatml" and generation.get("chat_format") is None:
        raise ValueError("chat_format: expected 'chatml', found 'raw': by its config this is a base model, which goes "
                         "on with a text instead of answering; take the chat model, or say chat_format='raw' to have a "
                         "text continued, or 'chatml' if it is a chat model nevertheless")
    return settings


def _several(name, values, what, instead=""):
    """What is given for many conversations, as a list; ValueError for a text, which is no list of its letters, ..."""
    # A set has no order; what a dict lists is its keys.
    if isinstance(values, (str, bytes, bytearray, dict, set, frozenset)) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected a list {what}, found {shown(values)}{instead and f'; {instead}'}")
    return list(values)


def _prompt(config, tokenizer, settings, query, history, system):
    """The ids of a prompt that the model can hold with an answer."""
    if not isinstance(query, str):
        raise ValueError(f"query: expected a text, found {type(query).__name__}; chat_batch takes several")
    if not isinstance(system, str):
        raise ValueError(f"system: expected a text, found {shown(system)}")
    if isinstance(history, (str, bytes, dict, set)) or not isinstance(history, (Iterable, NoneType)):
        raise ValueError(f"history: expected (query, response) pairs, found {shown(history)}")
    check_whole(query, "query")
    if is_blank(query):
        raise ValueError("query is empty")
    messages = [] if settings.chat_format == "raw" else as_messages(history, system)
    for number, message in enumerate(messages):  # two of them a turn, behind the system message
        if isinstance(message["content"], str):  # what is none is told by `prompt_of`
            check_whole(message["content"], f"history: turn {(number + 1) // 2}" if number else "system")
    ids = prompt_of([*messages, {"role": "user", "content": query}], settings, tokenizer, config)
    if len(ids) >= room_of(config):
        raise ValueError(f"query: it has {len(ids)} tokens with the system message, and the model holds "
                         f"{room_of(config)} with the answer: shorten it or raise seq_length")
    return ids


def _replies(model, tokenizer, prompts, settings):
    """Iterator of (number of a prompt, Reply), one for each token of each answer."""
    # The engine of the last chat knows what was said. A chat that begins meanwhile gets one of its own, and so does the
    # next one after a failure in the middle of a step.
    engine, model.chat_engine = getattr(model, "chat_engine", None) or Engine(model), None
    answers = Answers(engine, tokenizer)
    numbers = {answers.add(prompt, settings).id: number for number, prompt in enumerate(prompts)}
    try:
        while answers.has_work:
            for answer in answers.step():
                if answer.error:
                    raise answer.error
                yield numbers[answer.id], Reply(answer.text, answer.tokens, answer.finish_reason)
    except GeneratorExit:
        answers.cancel_all()
        model.chat_engine = engine
        raise
    answers.cancel_all()
    model.chat_engine = engine


def _alone(replies):
    with contextlib.closing(replies):
        for _, reply in replies:
            yield reply


def _texts(replies):
    with contextlib.closing(replies):
        shown = None
        for reply in replies:
            if reply.text != shown:
                shown = reply.text
                yield shown
