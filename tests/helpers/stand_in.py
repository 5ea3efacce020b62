"""What the engine's side is going to offer the server, for the scripted engine, until it does."""
from dataclasses import dataclass, field
from typing import NamedTuple

from qwen_mindspore.common.kinds import Kind
from qwen_mindspore.common.kinds import integer as _integer
from qwen_mindspore.generate import answers as now
from qwen_mindspore.generate.settings import ALLOWED, BOOLEAN, FROM_0, GenerationSettings


class Logprob(NamedTuple):
    token: int
    logprob: float
    top: tuple


def _between(low, high):
    def read(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Kind(f"a number from {low} to {high}", read)


def _bias(value):
    return tuple((int(token), float(bias)) for token, bias in (value.items() if isinstance(value, dict) else value))


_count = Kind("an integer from 0", _integer(0), optional=True)
ALLOWED.update(min_p=_between(0, 1), min_new_tokens=FROM_0, ignore_eos=BOOLEAN, presence_penalty=_between(-2, 2),
               frequency_penalty=_between(-2, 2), logit_bias=Kind("{id: number}", _bias), logprobs=_count,
               prompt_logprobs=_count)


@dataclass(frozen=True)
class Settings(GenerationSettings):
    min_p: float = 0.0
    min_new_tokens: int = 0
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass
class Request:
    prompt: list
    settings: Settings = field(default_factory=Settings)
    id: object = None
    grammar: object = None


@dataclass
class Output:
    id: object
    token: int | None
    finish_reason: str | None = None
    stop_length: int = 0
    error: Exception | None = None
    logprob: Logprob | None = None
    prompt_logprobs: list | None = None
    cached_tokens: int = 0


class Answer(now.Answer):
    def __init__(self, id, prompt, settings, tokenizer, strip=None):
        super().__init__(id, prompt, settings, tokenizer)
        self._is_chat = self._is_chat if strip is None else strip
        self.token_ids, self.logprobs, self.prompt_logprobs = [], [], []
        self.cached_tokens, self.stop_word, self.stop_words = 0, None, settings.stop_words

    def add(self, output):
        if output.token is not None:
            self.token_ids.append(output.token)
        if output.logprob is not None:
            self.logprobs.append(output.logprob)
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        return super().add(output)


class Answers(now.Answers):
    def add(self, prompt, settings, id=None, grammar=None, strip=None):
        ends = not settings.ignore_eos
        settings = now.with_stop_words(settings, self.tokenizer) if ends else settings
        self.engine.add(Request(prompt, settings, id, grammar))
        self.active[id] = answer = Answer(id, prompt, settings, self.tokenizer, strip)
        return answer

    def cancel(self, id):
        self.engine.cancel(id)
