"""Turning the tokens of an answer into text while they come."""
import codecs

__all__ = ["TextStream"]


class TextStream:
    """
    Text that grows token by token, never by part of a character, and ends before a stop word.

    What has come is given out at once, but for the bytes of an unfinished character and for what may turn out to be
    the beginning of a stop word. `"".join(puts) + end()` is what `tokenizer.decode(ids, skip_special_tokens=True)`
    gives for the same ids, as far as the stop word that is complete first: control tokens are left out, bytes that are
    not UTF-8 become U+FFFD (or what the tokenizer's `errors` says).

    Args:
        tokenizer (QwenTokenizer): decodes.
        stop_words (Sequence[str]): strings that end the text, wherever tokens begin and end. The name of a control
            token means that token as well.
        stop_words_ids (Sequence[Sequence[int]]): sequences of ids that do, control tokens among them.

    Attributes:
        text (str): all that was given out.
        stopped (bool): a stop word is complete. Nothing of it or behind it is given out.
        stop_word (str): the one of `stop_words` that it is; None where it is one of ids.

    Raises:
        ValueError: an empty stop word.
    """

    def __init__(self, tokenizer, stop_words=(), stop_words_ids=()):
        self.tokenizer = tokenizer
        self.stop_words = [stop_words] if isinstance(stop_words, str) else list(stop_words)
        self.stop_words_ids = [list(word) for word in stop_words_ids]
        if not all([*self.stop_words, *self.stop_words_ids]):
            raise ValueError("stop_words: expected strings or lists of ids with something in them, found an empty one")
        control = tokenizer.special_tokens
        self.stop_words_ids += [[control[word]] for word in self.stop_words if word in control]
        self.text, self.stopped, self.stop_word = "", False, None
        self._ids, self._characters = [], ""  # held back
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)

    def put(self, token, may_stop=True):
        """
        Add a token.

        Args:
            token (int): its id.
            may_stop (bool): a stop word that ends with it counts. Otherwise nothing up to it is part of one.

        Returns:
            str, the text that is certain now, often empty.
        """
        if self.stopped:
            return ""
        if not may_stop:
            ids, self._ids = [*self._ids, int(token)], []
            text, self._characters = self._characters + self._decode(ids, final=False), ""
            self.text += text
            return text
        ids, self._ids, word = _split([*self._ids, int(token)], self.stop_words_ids)
        self.stopped = word is not None
        return self._give(self._decode(ids, final=self.stopped), final=self.stopped)

    def end(self):
        """
        The answer is over.

        Returns:
            str, what was held back.
        """
        if self.stopped:
            return ""
        ids, self._ids = self._ids, []
        return self._give(self._decode(ids, final=True), final=True)

    def _decode(self, ids, final):
        return self._decoder.decode(self.tokenizer.decode_bytes(ids, skip_special_tokens=True), final)

    def _give(self, text, final):
        text, self._characters, self.stop_word = _split(self._characters + text, self.stop_words)
        self.stopped = self.stopped or self.stop_word is not None
        if final and self.stop_word is None:
            text, self._characters = text + self._characters, ""
        self.text += text
        return text


def _split(sequence, stop_words):
    """
    What stands before the stop word that is complete first, nothing, that word; or, without one, what stands before the
    longest end of the sequence that a stop word may begin with, that end, None.
    """
    ends = [(end, end - len(word), word) for word in stop_words for end in range(len(word), len(sequence) + 1)
            if sequence[end - len(word):end] == word]
    if ends:
        _, start, word = min(ends)
        return sequence[:start], sequence[:0], word
    longest = max(map(len, stop_words), default=0)
    start = next((start for start in range(max(len(sequence) - longest + 1, 0), len(sequence))
                  if any(word[:len(sequence) - start] == sequence[start:] for word in stop_words)), len(sequence))
    return sequence[:start], sequence[start:], None
