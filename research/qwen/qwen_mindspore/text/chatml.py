"""ChatML, the form of Qwen's conversations: the prompt of the next reply, the words that end it, and the reply as text.

ChatML writes each message as `<|im_start|>ROLE\\nCONTENT<|im_end|>`; the model goes on from
`<|im_start|>assistant\\n`. Prompts are equal to those of the reference's `make_context`.
"""
from mindformers.mindformer_book import MindFormerBook
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from qwen_mindspore.common.kinds import CHAT_FORMAT
from qwen_mindspore.text.tokenizer import IM_END, IM_START, QwenTokenizer

__all__ = ["DEFAULT_SYSTEM", "ROLES", "ChatMLTokenizer", "as_messages", "decode_tokens", "get_stop_words_ids",
           "make_context", "write_prompt"]

DEFAULT_SYSTEM = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")


def make_context(tokenizer, query, history=None, system=DEFAULT_SYSTEM,
                 max_window_size=6144, chat_format="chatml", max_length=None):
    """Write the prompt of the next reply in a conversation.

    Control tokens typed in a message stay text. History gives way by whole turns, oldest first: a turn is
    kept while the system message, the newer turns and itself have fewer than `max_window_size` tokens, and
    the whole prompt with it no more than `max_length`.

    Args:
        tokenizer (QwenTokenizer): gives the ids.
        query (str): what the user says now.
        history (list[tuple[str, str]], optional): earlier (query, response) pairs, oldest first; only read.
        system (str): the system message.
        max_window_size (int): tokens.
        chat_format (str): "chatml" for chat models. "raw" for base models: the query is the whole prompt,
            encoded like any text, control tokens and all; history and system have no place in it.
        max_length (int, optional): tokens. Without history the prompt has the length that it has.

    Returns:
        (str, list[int]), the prompt and its ids.

    Raises:
        ValueError: an unknown `chat_format`, or a turn that is not a pair.
    """
    if _checked(chat_format) == "raw":
        return query, tokenizer.encode(query)
    messages = [*as_messages(history, system), {"role": "user", "content": query}]
    return write_prompt(tokenizer, messages, max_window_size, max_length)


def as_messages(history, system):
    """Write a conversation of pairs as messages.

    Args:
        history (list[tuple[str, str]] | None): (query, response) pairs, oldest first.
        system (str): the system message.

    Returns:
        list[dict], {"role": ..., "content": ...} of the system message and of each query and response.

    Raises:
        ValueError: a turn that is not a pair.
    """
    messages = [{"role": "system", "content": system}]
    for query, response in _pairs(history):
        messages += [{"role": "user", "content": query}, {"role": "assistant", "content": response}]
    return messages


def write_prompt(tokenizer, messages, max_window_size=6144, max_length=None, continue_last=False):
    """Write the prompt of the next message in a conversation; see `make_context`.

    A turn is a user's message, or several in a row, with what follows up to the next one. The last turn is what is
    asked now, and stays.

    Args:
        tokenizer (QwenTokenizer): gives the ids.
        messages (list[dict]): {"role": ..., "content": ...}; the system message is the usual one where the first
            message is none. Without others the model begins.
        max_window_size, max_length: as in `make_context`.
        continue_last (bool): the last message, an assistant's, stays open, and the model goes on with it.

    Returns:
        (str, list[int]), the prompt and its ids.

    Raises:
        ValueError: there is nothing to continue.
    """
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    if continue_last and messages[-1]["role"] != "assistant":
        raise ValueError(f"messages: expected an assistant's message last, to continue, found the "
                         f"{messages[-1]['role']}'s")
    newline = "\n", tokenizer.encode("\n")

    def written(turn):
        return _joined([part for message in turn
                        for part in (newline, _message(tokenizer, message["role"], message["content"]))])

    instruction = _message(tokenizer, "system", messages[0]["content"])
    *turns, last = _turns(messages[1:]) or [[]]
    begun = last.pop()["content"] if continue_last else ""
    ids = [*_header_ids(tokenizer, "assistant"), *tokenizer.encode(begun, allowed_special=set())]
    question = _joined([written(last), newline, (f"{IM_START}assistant\n{begun}", ids)])
    room = max_window_size - len(instruction[1])
    if max_length is not None:
        room = min(room, max_length - len(instruction[1]) - len(question[1]) + 1)
    return _joined([instruction, *_newest(map(written, reversed(turns)), room), question])


def _turns(messages):
    turns = []
    for message in messages:
        if not turns or message["role"] == "user" != turns[-1][-1]["role"]:
            turns.append([])
        turns[-1].append(message)
    return turns


def _message(tokenizer, role, content):
    content_ids = tokenizer.encode(content, allowed_special=set())
    ids = [*_header_ids(tokenizer, role), *content_ids, tokenizer.im_end_id]
    return f"{IM_START}{role}\n{content}{IM_END}", ids


def _header_ids(tokenizer, role):
    # The reference encodes role, newline and content apart; together some would merge into other ids.
    return [tokenizer.im_start_id, *tokenizer.encode(role), *tokenizer.encode("\n")]


def _joined(pieces):
    return "".join(text for text, _ in pieces), [i for _, ids in pieces for i in ids]


def _pairs(history):
    pairs = list(history or ())
    for turn in pairs:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise ValueError(f"history: expected (query, response) pairs, found {turn!r}")
    return pairs


def _newest(turns, room):
    kept = []
    for turn in turns:
        room -= len(turn[1])
        if room <= 0:
            break
        kept.insert(0, turn)
    return kept


def get_stop_words_ids(chat_format, tokenizer):
    """The sequences of ids that end a reply, as list[list[int]]. ValueError for an unknown format."""
    if _checked(chat_format) == "raw":
        return [tokenizer.encode("Human:"), [tokenizer.eod_id]]
    return [[tokenizer.im_end_id], [tokenizer.im_start_id]]


def decode_tokens(tokens, tokenizer, context_length=0, chat_format="chatml"):
    """Decode a reply up to its first stop word or `<|endoftext|>`, without white space around it.

    Args:
        tokens (Sequence[int]): ids of the prompt and the reply.
        tokenizer (QwenTokenizer): decodes them.
        context_length (int): how many of them are the prompt.
        chat_format (str): "chatml" or "raw".

    Returns:
        str, the reply.

    Raises:
        ValueError: an unknown `chat_format`.
    """
    stop_words = [*get_stop_words_ids(chat_format, tokenizer), [tokenizer.eod_id]]
    return tokenizer.decode(_before_stop(list(tokens[context_length:]), stop_words)).strip()


def _before_stop(ids, stop_words):
    ends = (i for i in range(len(ids)) if any(ids[i:i + len(word)] == word for word in stop_words))
    return ids[:next(ends, len(ids))]


def _checked(chat_format):
    try:
        return CHAT_FORMAT.read(chat_format)
    except (ValueError, KeyError):
        raise ValueError(f"chat_format: expected 'chatml' or 'raw', found {chat_format!r}") from None


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class ChatMLTokenizer(QwenTokenizer):
    """Questions in, replies out: lets MindFormers' text generation pipeline and Trainer drive a chat model.

    Calling it on a question gives the ids of the ChatML prompt that asks it. `encode` and `tokenize` are
    those of QwenTokenizer. `decode(ids, skip_special_tokens=True)` of prompt and reply gives the reply
    alone: what follows the header of the last assistant message, up to a stop word or `<|endoftext|>`,
    without white space around it. Without such a header everything is taken as the reply.

    Args:
        vocab_file (str | Path, optional): as in QwenTokenizer.
        system (str): the system message of every prompt.
        **kwargs: as in QwenTokenizer.
    """

    def __init__(self, vocab_file=None, system=DEFAULT_SYSTEM, **kwargs):
        self.system = system
        super().__init__(vocab_file, system=system, **kwargs)

    def __call__(self, text, **kwargs):
        """Encode a question (str) or a batch of them (list of str).

        Args:
            **kwargs: padding, truncation, max_length, return_tensors, ..., as for any MindFormers tokenizer.

        Returns:
            BatchEncoding with input_ids and attention_mask.

        Raises:
            ValueError: `text` is neither.
        """
        if isinstance(text, str):
            return self.encode_plus(self._prompt_ids(text), **kwargs)
        if not isinstance(text, (list, tuple)) or not all(isinstance(question, str) for question in text):
            raise ValueError(f"text: expected a question or a list of questions, found {text!r}")
        # In a batch MindFormers reads a bare list of ids as a pair of texts.
        return self.batch_encode_plus([(self._prompt_ids(question), None) for question in text], **kwargs)

    def _prompt_ids(self, question):
        return make_context(self, question, system=self.system)[1]

    def _decode(self, token_ids, skip_special_tokens=False, **kwargs):
        if not skip_special_tokens:
            return super()._decode(token_ids, **kwargs)
        return super()._decode(self._reply_ids(token_ids), skip_special_tokens=True, **kwargs).strip()

    def _reply_ids(self, ids):
        header = _header_ids(self, "assistant")
        starts = (i for i in range(len(ids), 0, -1) if ids[max(i - len(header), 0):i] == header)
        return _before_stop(ids[next(starts, 0):], [[self.im_end_id], [self.im_start_id], [self.eod_id]])


# save_pretrained writes the processor's name into its YAML and looks it up here.
MindFormerBook.get_tokenizer_name_to_processor()[ChatMLTokenizer.__name__] = "QwenProcessor"
