"""The next token by its logits: exact sampling without sorting the vocabulary; what must hold of prompts and logits."""
import numpy as np

from qwen_mindspore.common.text import shown

__all__ = ["as_ids", "check_finite", "check_logits", "check_prompt", "next_token", "penalize", "sample"]

NEAR = 1e-3  # of the largest weight: where the weights that hold top_p are looked for first
GROUP = 64  # of logits, one of whose maximum tells whether top_k has to look at them
LEAST_TEMPERATURE = 1e-3  # below it float32 is too narrow for what is divided by it
CAUSES = ("float16 may have overflowed, then bfloat16 or float32 helps (compute_dtype); else weights are damaged: "
          "check the checkpoint")


def next_token(logits, settings, random, name, place=""):
    """
    The likeliest token, or with `do_sample` and a temperature above 0 one that is drawn.

    Args:
        logits (np.ndarray): [vocab_size] float32 or float64. -inf forbids a token.
        settings (GenerationSettings or GenerationConfig): `do_sample`, and what `sample` takes.
        random (Callable[[], float]): Gives the numbers from [0, 1) to draw by.
        name, place (str): Whose logits they are, and where, for the error.

    Returns:
        int, the token.

    Raises:
        FloatingPointError: See `check_finite`.
    """
    if settings.do_sample and settings.temperature != 0:
        return sample(logits, settings, random(), name, place)
    token = int(logits.argmax())  # of a NaN, where there is one
    check_finite(logits[token], name, place)
    return token


def check_finite(value, name, place=""):
    """
    Make sure that numbers can be trusted.

    Args:
        value (float): Their maximum or their sum: it is not finite where one of them is NaN or infinite, but may be
            where one is -inf, as processors write it to forbid a token.
        name (str): What they belong to.
        place (str): Where, as "token 3 of the answer".

    Raises:
        FloatingPointError: The value is not finite.
    """
    if not np.isfinite(value):
        raise FloatingPointError(f"{name}: the logits are not finite{place and f' at {place}'}: {CAUSES}")


def check_logits(logits, name, place=""):
    """
    FloatingPointError where the logits [vocab_size] of a model, before anything alters them, are all the same: what it
    was computed of has overflowed, and a norm has divided it by infinity. See `check_finite`, which finds the rest.
    """
    # Mostly, one look tells.
    if len(logits) > 1 and logits[0] == logits[-1] and (logits == logits[0]).all():
        raise FloatingPointError(f"{name}: the logits are all the same{place and f' at {place}'}, as where what comes "
                                 f"before them is not finite: {CAUSES}")


def sample(logits, settings, uniform, name="the prompt", place=""):
    """
    Draw a token: softmax of logits / temperature, cut to the tokens that are at least `min_p` times as likely as the
    likeliest, then to the `top_k` likeliest, then to the fewest likeliest ones that hold `top_p` of what is left.

    Args:
        logits (np.ndarray): [vocab_size] float32 or float64.
        settings (GenerationSettings or GenerationConfig): `temperature` above 0, `top_k` (0 or None: off), `top_p` (1
            or None: off), and, where it has one, `min_p` (0: off).
        uniform (float): A random number from [0, 1).
        name, place (str): Whose logits they are, and where, for the error.

    Returns:
        int, the token.

    Raises:
        FloatingPointError: See `check_finite`.

    Source: Fan et al., arXiv:1805.04833 (top-k); Holtzman et al., arXiv:1904.09751 (top-p); Nguyen et al.,
    arXiv:2407.01082 (min-p)
    """
    temperature = 1.0 if settings.temperature is None else settings.temperature
    top_k, top_p = settings.top_k or len(logits), settings.top_p or 1.0
    peak = logits.max()
    check_finite(peak, name, place)
    distances = logits - peak  # first, so that the largest stays 0, however small the temperature
    if temperature != 1.0:
        _divide(distances, temperature)
    weights = np.exp(distances, out=distances).astype(np.float32, copy=False)
    if getattr(settings, "min_p", None):
        weights[weights < settings.min_p] = 0  # the likeliest has weight 1
    if top_k < len(logits):
        kept = _largest(weights, top_k)
        return _draw(kept, weights[kept], top_p, uniform)
    return _draw(None, weights, top_p, uniform)


def _divide(distances, temperature):
    """Divide what is 0 or below it by a temperature above 0, in place; what is far below becomes -inf."""
    with np.errstate(over="ignore", under="ignore"):
        if temperature >= LEAST_TEMPERATURE:
            distances /= temperature
        else:
            distances[:] = distances.astype(np.float64) / temperature


def _largest(x, count):
    """The places of the `count` largest of x, in any order."""
    # At least so many are not below the least of the `count` largest maxima of groups: few others are either.
    groups = x[:len(x) // GROUP * GROUP].reshape(GROUP, -1).max(0)
    places = np.arange(len(x))
    if count < len(groups):
        places = np.flatnonzero(x >= np.partition(groups, -count)[-count])
    return places[np.argpartition(x[places], -count)[-count:]]


def _nucleus(weights, target):
    """The places of the fewest largest weights, float32, whose sum is at least `target`; of equal ones the first."""
    # Mostly, few weights are near the largest, and hold enough.
    places = np.flatnonzero(weights >= NEAR * weights.max())
    some = weights[places]
    if some.sum(dtype=np.float64) < target:
        places, some = np.arange(len(weights)), weights
    # Sorting takes longest. The first bits of a weight tell its class, of all that are within 3 %: only the class in
    # which the sum is reached is sorted.
    classes = some.view(np.int32) >> 18
    sums = np.cumsum(np.bincount(classes, some)[::-1])
    reached = min(int(np.searchsorted(sums, target)), len(sums) - 1)
    last = len(sums) - 1 - reached
    edge = np.flatnonzero(classes == last)
    edge = edge[np.argsort(-some[edge], kind="stable")]
    missing = target - (sums[reached - 1] if reached else 0.0)
    count = int(np.searchsorted(np.cumsum(some[edge], dtype=np.float64), missing)) + 1
    return places[np.concatenate((np.flatnonzero(classes > last), edge[:count]))]


def _draw(tokens, weights, top_p, uniform):
    """One of `tokens` (None: their numbers) in proportion to `weights`, cut to the fewest that hold top_p of them."""
    if top_p < 1.0:
        kept = _nucleus(weights, top_p * weights.sum(dtype=np.float64))
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    sums = np.cumsum(weights, dtype=np.float64)
    place = min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(sums) - 1)
    return place if tokens is None else int(tokens[place])


def penalize(logits, ids, penalty):
    """
    Make tokens that are there already less likely, or, with a penalty below 1, likelier.

    Args:
        logits (np.ndarray): [vocab_size] float32; may be altered.
        ids (np.ndarray): [S], the tokens that are there.
        penalty (float): Above 0.

    Returns:
        np.ndarray, [vocab_size]: the same, or, where float32 can't hold what comes of it, float64.

    Source: Keskar et al., arXiv:1909.05858
    """
    if not 1e-3 <= penalty <= 1e3:
        logits = logits.astype(np.float64)
    seen = logits[ids]
    with np.errstate(over="ignore"):
        penalized = np.where(seen < 0, seen * penalty, seen / penalty)
    if logits.dtype == np.float64:
        # A NaN stays one, and what was infinite stays so: neither is the penalty's doing.
        limit = np.finfo(np.float64).max / 4
        penalized = np.where(np.isfinite(seen), np.clip(penalized, -limit, limit), seen)
    logits[ids] = penalized
    return logits


def as_ids(prompt, name):
    """A prompt, a sequence, an array or a Tensor, as an int64 array; ValueError for what is no list of ids."""
    if hasattr(prompt, "asnumpy"):
        prompt = prompt.asnumpy()
    try:
        ids = np.asarray(prompt)
    except (ValueError, TypeError, OverflowError):  # lists of lists that differ in length
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"{name}: expected a list of ids, found {shown(prompt)}")
    return ids.astype(np.int64)


def check_prompt(prompt, vocabulary, room, name):
    """ValueError for an array of ids that is empty, has other ids than the vocabulary, or leaves no room to answer."""
    length = len(prompt)
    if length == 0:
        raise ValueError(f"{name} is empty")
    wrong = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if wrong.size:
        raise ValueError(f"{name}: id {wrong[0]} is outside the vocabulary of {vocabulary}")
    if length >= room:
        raise ValueError(f"{name} has {length} tokens and the model holds {room} with the answer: shorten it, or raise "
                         "seq_length, and num_blocks where it is set")
