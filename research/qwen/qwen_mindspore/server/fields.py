"""From the fields of a request to the settings of its answers."""
import re

from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.common.text import shown
from qwen_mindspore.generate.settings import ALLOWED
from qwen_mindspore.server.errors import invalid

__all__ = ["check_depth", "choices_of", "settings_of", "with_seed"]

# The field -> the setting, where a field is but that.
SETTINGS = {"min_tokens": "min_new_tokens", "ignore_eos": "ignore_eos", "do_sample": "do_sample",
            "temperature": "temperature", "top_p": "top_p", "min_p": "min_p",
            "repetition_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
            "frequency_penalty": "frequency_penalty"}
DRAWS = ("temperature", "top_p", "top_k", "min_p")  # who gives one of them wants tokens drawn
SEEDS = 2**32


def settings_of(body, service, default_tokens=None, stop_words=(), **others):
    """
    The settings of a request's answers.

    Args:
        body (GenerationRequest): The request.
        service (Service): Its settings are what the request doesn't say.
        default_tokens (int): The length of an answer where nobody says it. Default: the service's.
        stop_words (Iterable[str]): Besides the request's.
        **others: Settings that the caller has found out.

    Returns:
        GenerationSettings.

    Raises:
        ApiError: 400 for a value that a field can't have.
    """
    changes = {setting: _read(setting, field, getattr(body, field)) for field, setting in SETTINGS.items()
               if getattr(body, field) is not None}
    if body.top_k is not None:
        changes["top_k"] = 0 if body.top_k == -1 else _read("top_k", "top_k", body.top_k)
    if body.do_sample is None and any(getattr(body, field) is not None for field in DRAWS):
        changes["do_sample"] = body.temperature != 0
    if body.seed is not None:
        changes["seed"] = body.seed % SEEDS
    if body.logit_bias:
        changes["logit_bias"] = _biases(body.logit_bias, service.config.vocab_size)
    tokens = _tokens(body, default_tokens)
    if tokens is not None:
        changes["max_new_tokens"] = tokens
    default = service.settings
    least, most = (changes.get(name, getattr(default, name)) for name in ("min_new_tokens", "max_new_tokens"))
    if least > most:
        raise invalid(f"min_tokens: expected at most max_tokens ({most}), found {least}", "min_tokens")
    changes["stop_words"] = (*default.stop_words, *_stop_words(body.stop, service.limits), *stop_words)
    changes["stop_words_ids"] = (*default.stop_words_ids, *_stop_ids(body.stop_token_ids, service))
    try:
        return default.override(**changes, **others)
    except ValueError as error:
        raise invalid(str(error)) from None


def with_seed(settings, index):
    """The settings of the choice of a number, from 0: the next seed with each."""
    return settings if not index or settings.seed is None else settings.override(seed=(settings.seed + index) % SEEDS)


def choices_of(body, service, prompts=1):
    """int, `n`; ApiError (400) where it, or it times the prompts, is no number that is served."""
    n, most = 1 if body.n is None else body.n, service.most_answers
    if not 1 <= n <= most:
        raise invalid(f"n: expected an integer from 1 to {most}, found {n}", "n")
    if n * prompts > most:
        raise invalid(f"prompt: expected at most {most} answers in one request, found {prompts} prompts"
                      + (f" with {n} each" if n > 1 else ""), "prompt")
    return n


def check_depth(value, name, limit):
    """ApiError (400) where lists and objects stand in each other more than `limit` times."""
    level = [value]
    for _ in range(limit):
        level = [item for outer in level if isinstance(outer, (dict, list))
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return
    raise invalid(f"{name}: nested too deeply, expected at most {limit} levels", name)


def _read(setting, field, value):
    try:
        return read_as(ALLOWED[setting], field, value)
    except ValueError as error:
        raise invalid(str(error), field) from None


def _tokens(body, default):
    tokens, name = body.max_tokens, "max_tokens"
    newer = getattr(body, "max_completion_tokens", None)
    if newer is not None:
        if tokens is not None and tokens != newer:
            raise invalid(f"max_completion_tokens: expected the same as max_tokens ({tokens}) or one of them alone, "
                          f"found {newer}", "max_completion_tokens")
        tokens, name = newer, "max_completion_tokens"
    if tokens is None:
        return default
    if tokens == 0 and getattr(body, "echo", None):  # the prompt alone; the engine gives a token at least
        return 1
    return _read("max_new_tokens", name, tokens)


def _stop_words(stop, limits):
    words = [stop] if isinstance(stop, str) else stop or []
    if len(words) > limits.max_stop:
        raise invalid(f"stop: expected at most {limits.max_stop} stop words, found {len(words)}", "stop")
    for word in words:
        if not word or len(word) > limits.max_stop_length:
            raise invalid(f"stop: expected stop words of 1 to {limits.max_stop_length} characters, found "
                          f"{shown(word)}", "stop")
    return words


def _stop_ids(ids, service):
    ids = ids or []
    if len(ids) > service.limits.max_stop:
        raise invalid(f"stop_token_ids: expected at most {service.limits.max_stop}, found {len(ids)}",
                      "stop_token_ids")
    size = service.config.vocab_size
    for token in ids:
        if not 0 <= token < size:
            raise invalid(f"stop_token_ids: expected ids from 0 to {size - 1}, found {token}", "stop_token_ids")
    return [(token,) for token in ids]


def _biases(biases, size):
    for name in biases:
        # As a number is written: "07" would be an id told twice, and thousands of digits are none.
        if not re.fullmatch("0|[1-9][0-9]{0,11}", name) or int(name) >= size:
            raise invalid(f"logit_bias: expected ids from 0 to {size - 1}, found {shown(name)}", "logit_bias")
    return _read("logit_bias", "logit_bias", {int(name): bias for name, bias in biases.items()})
