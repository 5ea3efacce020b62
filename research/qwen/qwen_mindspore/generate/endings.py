"""
How an answer that is held by a grammar comes to its end in time: from any place, a short way to where nothing need
follow. It closes what is open, and writes no more than what is still required.
"""
import numpy as np

__all__ = ["Endings"]

# What comes first of what may stand, in JSON: the end of a text, of an object, of a list; what can't be avoided. An
# empty text comes before its quotes, since a token that is a quote and more could begin a text.
CLOSING = (b'""', b'"', b"}\n", b"}}", b"}", b"]", b'":', b":", b",", b"\n")
TRIES = 4  # what else may stand is drawn


class Endings:
    """
    Ways to the end. Everything may be called from any thread.

    Args:
        tokenizer (QwenTokenizer): The model's.
        end (int): The id that ends an answer where it could go on.
    """

    def __init__(self, tokenizer, end):
        ranks = tokenizer.mergeable_ranks
        self._end = end
        self._closing = [ranks[data] for data in CLOSING if data in ranks]
        self._line_end = [ranks[b"\n"]]
        self._bytes = {token: data for data, token in ranks.items()}
        size = max(ranks.values()) + 1
        self._lengths, self._are_plain = np.zeros(size, np.int32), np.zeros(size, bool)
        for data, token in ranks.items():
            self._lengths[token], self._are_plain[token] = len(data), data.isalnum()

    def bytes_of(self, token):
        """bytes of a token's text; nothing for a control token."""
        return self._bytes.get(token, b"")

    def find(self, matcher, most, marker=b""):
        """
        A short way, not always the shortest.

        Args:
            matcher (llguidance.LLMatcher): Stays where it is.
            most (int): Tokens that the way may have.
            marker (bytes): JSON begins behind it, and in front of it a line is to end; nothing: this is JSON.

        Returns:
            list[int], the tokens; None where no way was found.
        """
        best = None
        for seed in range(TRIES):
            way = self._try(matcher.deep_copy(), most if best is None else len(best) - 1, marker,
                            np.random.RandomState(seed))
            best = best if way is None else way
            if best is not None and 2 * len(best) <= most:
                break  # a shorter one isn't needed
        return best

    def _try(self, matcher, most, marker, chance):
        way, text = [], b""
        while not matcher.is_stopped():
            if len(way) >= most:
                return None
            token = self._next(matcher, self._closing if marker in text else self._line_end, chance)
            if token is None or not matcher.consume_token(token):
                return None
            way.append(token)
            text += self.bytes_of(token)
        return None if matcher.is_error() else way

    def _next(self, matcher, preferred, chance):
        """The token that ends most: the answer, what is open; else one that is long, of letters if possible."""
        if matcher.is_accepting():
            return self._end
        for token in preferred:
            if matcher.validate_tokens([token]):
                return token
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:len(self._lengths)])
        if not len(allowed):
            return None
        plain = allowed[self._are_plain[allowed]]
        allowed = plain if len(plain) else allowed
        lengths = self._lengths[allowed]
        return int(chance.choice(allowed[2 * lengths >= lengths.max()]))
