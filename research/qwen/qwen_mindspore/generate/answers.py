"""
The one way from messages to an answer: a conversation and settings become the prompt of a request, what an engine
brings for it becomes text, with the reason of its end. Chat, batch generation and whatever else answers stand on it.

    answers = Answers(engine, tokenizer)
    answers.add(prompt_of(messages, settings, tokenizer, model.config), settings)
    while answers.has_work:
        for answer in answers.step():
            print(answer.text, answer.finish_reason)
"""
import threading

from qwen_mindspore.common.text import check_whole, shown
from qwen_mindspore.generate.requests import Request
from qwen_mindspore.text.chatml import ROLES, get_stop_words_ids, write_prompt
from qwen_mindspore.text.stream import TextStream

__all__ = ["Answer", "Answers", "prompt_of", "room_of", "text_of", "with_stop_words"]


def room_of(config):
    """int, the most tokens that a prompt and its answer may have together, by the model's QwenConfig."""
    return min(config.seq_length, config.cache_blocks * config.block_size)


def prompt_of(messages, settings, tokenizer, config, parse_special=False, continue_last=False):
    """
    The prompt that asks for the next message of a conversation.

    In ChatML the conversation is trimmed by whole turns, the oldest first, to `max_window_size` and to what the model
    holds with an answer of `max_new_tokens`, or of a quarter of that room where they are more: see
    `text.chatml.write_prompt`. The last turn stays whatever its length.

    "raw" means a text that is continued. Control tokens that are typed in a text stay text, in "raw" as in ChatML.

    Args:
        messages (list[dict]): {"role": "system" | "user" | "assistant", "content": str, or its parts, see `text_of`};
            a system message may only be the first, and is the usual one where there is none. In "raw" one user's
            message, which is the text.
        settings (GenerationSettings): `chat_format`, `max_window_size` and `max_new_tokens`.
        tokenizer (QwenTokenizer): Gives the ids.
        config (QwenConfig): The model's.
        parse_special (bool): Control tokens that are typed in a text are control tokens. Only for "raw".
        continue_last (bool): The last message is an assistant's, and the answer goes on with it. Only for ChatML.

    Returns:
        list[int]. It may have more ids than the model holds: the engine refuses it then.

    Raises:
        ValueError: What is no such conversation; `parse_special` for ChatML; nothing to go on with.
    """
    messages = _checked(messages)
    if settings.chat_format == "raw":
        if len(messages) != 1 or messages[0]["role"] != "user":
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"messages: expected one user's text to continue (chat_format raw), found {roles}")
        return tokenizer.encode(messages[0]["content"], allowed_special="all" if parse_special else set())
    if parse_special:
        raise ValueError("parse_special: in ChatML what a message says stays text; it is for chat_format raw")
    if messages[-1]["role"] == "system":
        raise ValueError("messages: expected a question, found none")
    room = room_of(config)
    length = room - min(settings.max_new_tokens, room // 4)
    return write_prompt(tokenizer, messages, settings.max_window_size, length, continue_last)[1]


def text_of(content, name="content"):
    """
    The text of a message's content.

    Args:
        content (str | list[dict]): The text, or parts as OpenAI's API has them, {"type": "text", "text": str}, which
            are joined as they are.
        name (str): What it is called in the error.

    Returns:
        str.

    Raises:
        ValueError: Something else; an image, say, which this model can't read.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{name}: expected text, found {shown(content)}")
    texts = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = f"one of type {shown(part.get('type'))}" if isinstance(part, dict) else shown(part)
            raise ValueError(f'{name}: expected text, or parts {{"type": "text", "text": ...}}: this model reads text '
                             f"alone; part {number} is {kind}")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{name}: expected text in part {number}, found {shown(part.get('text'))}")
        texts.append(part["text"])
    return "".join(texts)


def _checked(messages):
    """The messages with their contents as text; ValueError for what is no conversation."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"messages: expected a list of {{role, content}}, found {shown(messages)}")
    checked = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES or not isinstance(message.get("content"), (str, list, tuple)):
            raise ValueError(f"message {number}: expected a role of {', '.join(ROLES)} and text as content, found "
                             f"{shown(message)}")
        if role == "system" and number > 1:
            raise ValueError(f"message {number}: expected the system message to be the first")
        content = text_of(message["content"], f"message {number}: content")
        check_whole(content, f"message {number}: content")
        checked.append({"role": role, "content": content})
    return checked


def with_stop_words(settings, tokenizer):
    """
    Settings with what ends an answer besides their own stop words: `<|endoftext|>`, and in ChatML the control tokens
    that begin and end a message. In "raw" there is nothing else; the reference's chat stops at "Human:" there, too.
    With `ignore_eos` these end none.

    Args:
        settings (GenerationSettings): Any.
        tokenizer (QwenTokenizer): The model's.

    Returns:
        GenerationSettings.
    """
    control, end = get_stop_words_ids("chatml", tokenizer), [tokenizer.eod_id]
    if settings.ignore_eos:  # a config names them, too
        own = [word for word in settings.stop_words_ids if list(word) not in [*control, end]]
        return settings.override(stop_words_ids=own)
    ends = [*control, end] if settings.chat_format == "chatml" else [end]
    return settings.override(stop_words_ids=[*settings.stop_words_ids, *ends])


class Answer:
    """
    An answer that grows. Another thread may look at it meanwhile: text is only added, and `finish_reason` comes last.

    Args:
        id (Hashable): The request's.
        prompt (Sequence[int]): The request's.
        settings (GenerationSettings): The request's.
        tokenizer (QwenTokenizer): Decodes.
        strip (bool): Without white space around its text. Default: in ChatML.

    Attributes:
        prompt_tokens (int): Of the prompt.
        cached_tokens (int): Of these, those that were not computed, since they were there already.
        started (float): When the engine began with it, by `time.monotonic()`; None before.
        tokens (int): Of the answer so far, those of a stop word included.
        token_ids (list[int]): They.
        logprobs (list[Logprob]): How likely they were, where the settings ask.
        prompt_logprobs (list[Logprob | None]): How likely the prompt's tokens were, where the settings ask.
        finish_reason (str): None while it grows; "stop" at a stop word, whether of ids or a string, or where a grammar
            lets nothing follow; "length" where `max_new_tokens`, or what the model holds, cut it off; "cancelled";
            "error".
        stop_word (str): The one of the settings' `stop_words` that ended it; None for another end.
        error (Exception): What went wrong, with "error".
    """

    def __init__(self, id, prompt, settings, tokenizer, strip=None):
        self.id, self.prompt_tokens, self.cached_tokens = id, len(prompt), 0
        self.token_ids, self.logprobs, self.prompt_logprobs = [], [], []
        self.finish_reason = self.error = self.started = None
        self._strip = settings.chat_format == "chatml" if strip is None else strip
        self._least = settings.min_new_tokens
        self._stream = TextStream(tokenizer, settings.stop_words, settings.stop_words_ids)

    @property
    def tokens(self):
        """See the class."""
        return len(self.token_ids)

    @property
    def text(self):
        """What there is of it, as far as it is certain."""
        return self._stream.text.strip() if self._strip else self._stream.text

    @property
    def stop_word(self):
        """See the class."""
        return self._stream.stop_word

    def add(self, output):
        """
        Take what a step of the engine brings.

        Args:
            output (Output): For this request.

        Returns:
            bool, whether the request must be cancelled: a stop string is complete, which the engine does not know of.
        """
        self.cached_tokens, self.started = output.cached_tokens, output.started
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.logprob is not None:
            self.logprobs.append(output.logprob)
        if output.token is not None:
            self.token_ids.append(output.token)
            self._stream.put(output.token, may_stop=self.tokens > self._least)
        reason, self.error = output.finish_reason, output.error
        if reason or self._stream.stopped:
            self._stream.end()
            self.finish_reason = "stop" if self._stream.stopped and reason in (None, "length") else reason
        return bool(self.finish_reason and not reason)


class Answers:
    """
    The answers that an engine is at work on. `step` belongs to one thread at a time; `add` and `cancel` may be called
    from any.

    Args:
        engine (Engine): Generates.
        tokenizer (QwenTokenizer): Its model's.

    Attributes:
        active (dict[Hashable, Answer]): Those that have not ended, by id.
        tokens (int): Generated so far, of all.
    """

    def __init__(self, engine, tokenizer):
        self.engine, self.tokenizer = engine, tokenizer
        self.active, self.tokens = {}, 0
        self._owes_step = False  # some that are not active any more still have their blocks
        self._lock = threading.Lock()  # an output may come before its answer is entered

    @property
    def has_work(self):
        """Whether there is a step to do: of answers that have not ended, or one to give back what others held."""
        return bool(self.active) or self._owes_step

    def add(self, prompt, settings, id=None, grammar=None, strip=None):
        """
        Ask for an answer.

        Args:
            prompt (list[int]): See `prompt_of`.
            settings (GenerationSettings): What else ends an answer is added to them, see `with_stop_words`.
            id (Hashable): Default: the engine gives one.
            grammar: What may come next, or None; see `engine.Request`.
            strip (bool): See `Answer`.

        Returns:
            Answer, which `step` lets grow.

        Raises:
            ValueError: See `Engine.add`.
        """
        settings = with_stop_words(settings, self.tokenizer)
        answer = Answer(id, prompt, settings, self.tokenizer, strip)
        with self._lock:
            number = self.engine.add(Request(prompt, settings, id, grammar))
            answer.id = number if id is None else id
            self.active[answer.id] = answer
        return answer

    def cancel(self, id):
        """End an answer; the next step says so. One that is not there, or has ended, is no error."""
        self.engine.cancel(id)

    def step(self):
        """
        One step of the engine.

        Returns:
            list[Answer], those that have grown or ended.
        """
        outputs, changed = self.engine.step(), []
        with self._lock:
            self._owes_step = False
            for output in outputs:
                answer = self.active.get(output.id)
                if answer is None:  # a stop string ended it, and the engine says that it was cancelled
                    continue
                self.tokens += output.token is not None
                if answer.add(output):
                    self.engine.cancel(output.id)
                    self._owes_step = True
                if answer.finish_reason:
                    del self.active[output.id]
                changed.append(answer)
        return changed

    def cancel_all(self):
        """End all answers; the engine has no work of theirs afterwards."""
        self.abandon()
        if self.engine.has_work:
            self.engine.step()
        self._owes_step = False

    def abandon(self):
        """
        Forget all answers, whether or not the engine still knows them; the next step gives back what they hold.

        Returns:
            list[Hashable], their ids.
        """
        with self._lock:
            ids, self.active, self._owes_step = list(self.active), {}, True
        for id in ids:
            self.engine.cancel(id)
        return ids
