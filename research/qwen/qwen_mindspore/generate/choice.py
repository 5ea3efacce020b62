"""
How the tokens of one answer are chosen: the one place where a model's logits are altered, always in the same order.

The state of a choice belongs to its sequence and advances with the tokens that are appended, never with what is
computed: an answer that is put back and computed again, beside whatever others, is the same answer.
"""
from collections import Counter
from typing import NamedTuple

import numpy as np

from qwen_mindspore.generate.sampling import check_finite, check_logits, next_token, penalize

__all__ = ["Choice", "Logprob", "logprobs_of"]


class Logprob(NamedTuple):
    """
    How likely a token was, by the model's own logits, before anything alters them.

    Attributes:
        token (int): Its id.
        logprob (float): In nats.
        top (tuple[tuple[int, float]]): The likeliest tokens and their log probabilities, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits, tokens, count):
    """
    The Logprob of a token in each row.

    Args:
        logits (np.ndarray): [rows, vocab_size].
        tokens (Sequence[int]): [rows], the ids.
        count (int): How many of the likeliest to tell.

    Returns:
        list[Logprob].
    """
    peaks = logits.max(-1, keepdims=True)
    sums = peaks + np.log(np.exp(logits - peaks, dtype=np.float64).sum(-1, keepdims=True))
    count = min(count, logits.shape[-1])
    found = []
    for row, token, total in zip(logits, tokens, sums[:, 0]):
        top = np.argpartition(row, -count)[-count:] if count else ()
        top = sorted(top, key=lambda other: (-row[other], other))
        found.append(Logprob(int(token), float(row[token] - total),
                             tuple((int(other), float(row[other] - total)) for other in top)))
    return found


class Choice:
    """
    The choices of one answer. Logits are altered in this order: `logit_bias`; `repetition_penalty`, by prompt and
    answer; `presence_penalty` and `frequency_penalty`, by the answer; what `min_new_tokens` holds back; the grammar;
    then what drawing takes (temperature, `min_p`, `top_k`, `top_p`). At last the grammar may take another token
    than the one that was drawn, where the answer could not end in time otherwise.

    Args:
        settings (GenerationSettings): The request's.
        vocabulary (int): Ids from 0 to this.
        grammar: What may come next, or None: an object with `mask(logits)`, which writes -inf where no token may come
            next, `accept(token)`, and `is_over`, whether nothing may follow. It belongs to this answer alone.
        most (int): Tokens that the answer may have. With it the grammar also has `steer(token, left)`: it gives the
            token that was chosen, or another one, with which the answer ends within the `left` tokens behind it.
    """

    def __init__(self, settings, vocabulary, grammar=None, most=None):
        self.settings, self.grammar, self.most = settings, grammar, most
        self.uniform = np.random.RandomState(settings.seed).random_sample if settings.draws else None
        self.answered, self.counts = 0, Counter()
        biases = [pair for pair in settings.logit_bias if pair[0] < vocabulary]
        self.biased, self.biases = _columns(biases)
        self.held = sorted({word[0] for word in settings.stop_words_ids if len(word) == 1 and word[0] < vocabulary})
        self.alters = bool(biases or grammar or settings.repetition_penalty != 1.0 or settings.presence_penalty
                           or settings.frequency_penalty or settings.min_new_tokens)

    @property
    def may_end(self):
        """Whether the token that is chosen next may be the answer's last, but for its length."""
        return self.answered + 1 > self.settings.min_new_tokens

    @property
    def is_over(self):
        """Whether the grammar lets nothing follow."""
        return self.grammar is not None and self.grammar.is_over

    def choose(self, logits, ids, name):
        """
        The next token.

        Args:
            logits (np.ndarray): [vocab_size] float32; altered.
            ids (np.ndarray): Those of the prompt and of the answer so far.
            name (str): Whose logits they are, for the error.

        Returns:
            (int, Logprob | None), the token, and where the settings ask for it how likely it was.

        Raises:
            FloatingPointError: The logits are not finite.
            ValueError: No token can be chosen by these settings.
        """
        place = f"token {self.answered + 1} of the answer"
        check_logits(logits, name, place)
        raw = logits.copy() if self.settings.logprobs is not None else None
        try:
            logits = self._altered(logits, ids, name, place)
            token = next_token(logits, self.settings, self.uniform, name, place)
            if self.grammar is not None and self.most is not None:
                token = self.grammar.steer(token, self.most - self.answered - 1)
        except (LookupError, TypeError) as error:  # of this request alone: others go on
            raise ValueError(f"{name}: no token to choose at {place} by {self.settings}: {error}") from error
        return token, None if raw is None else logprobs_of(raw[None], [token], self.settings.logprobs)[0]

    def append(self, token):
        """The token was chosen: what comes next depends on it."""
        self.answered += 1
        self.counts[token] += 1
        if self.grammar is not None:
            self.grammar.accept(token)

    def _altered(self, logits, ids, name, place):
        settings = self.settings
        if not self.alters:
            return logits
        check_finite(logits.max(), name, place)  # what is masked below would hide it
        if len(self.biased):
            logits[self.biased] += self.biases
        if settings.repetition_penalty != 1.0:
            logits = penalize(logits, ids, settings.repetition_penalty)
        if self.counts and (settings.presence_penalty or settings.frequency_penalty):
            tokens, counts = _columns(self.counts.items())
            logits[tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
        if not self.may_end:
            logits[self.held] = -np.inf
        if self.grammar is not None:
            self.grammar.mask(logits)
        if np.isneginf(logits.max()):
            raise ValueError(f"{name}: no token is left to choose at {place}: what the request allows contradicts "
                             "itself (logit_bias, min_new_tokens, a grammar)")
        return logits


def _columns(pairs):
    """Pairs of an id and a number as two arrays."""
    tokens, numbers = zip(*pairs) if pairs else ((), ())
    return np.array(tokens, np.int64), np.array(numbers, np.float32)
