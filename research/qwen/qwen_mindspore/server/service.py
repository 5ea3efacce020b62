"""What the server serves: a model by a name, with its defaults and limits; who may come in, and when."""
from dataclasses import dataclass, field
from typing import Any

from qwen_mindspore import __version__
from qwen_mindspore.generate.answers import room_of
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.errors import overloaded, unavailable

__all__ = ["Finished", "Limits", "Metrics", "Service", "service_of"]


@dataclass(frozen=True)
class Limits:
    """
    What one request, and all together, may want.

    Args:
        max_queued (int): Answers that wait while the engine computes as many as it can at once.
        max_queued_tokens (int): Of prompts that wait for their first token, together; one alone may be longer. 0: any.
        max_body (int): Bytes of a request.
        max_depth (int): Of lists and objects in each other in a request.
        max_n (int): Answers of one request, to all its prompts.
        max_stop (int): Stop words of one request.
        max_stop_length (int): Characters of one.
        max_logprobs (int): Of the likeliest tokens at each place.
        max_tools (int): Tools of one request.
        ping_seconds (float): How long a stream may be silent before a comment keeps its connection open.
    """

    max_queued: int = 256
    max_queued_tokens: int = 0
    max_body: int = 4 * 2**20
    max_depth: int = 64
    max_n: int = 128
    max_stop: int = 16
    max_stop_length: int = 256
    max_logprobs: int = 20
    max_tools: int = 128
    ping_seconds: float = 15.0


@dataclass(frozen=True)
class Finished:
    """
    An HTTP request for answers that is over: what logs and metrics tell of it.

    Attributes:
        id (str): "chatcmpl-...", "cmpl-...".
        endpoint (str): "chat" or "completions".
        stream (bool): As asked.
        prompt_tokens, cached_tokens, completion_tokens (int): As in `usage`; of a request that was cut short, too.
        finish_reasons (tuple[str]): Of each answer: "stop", "length", "tool_calls", "function_call", "cancelled" (the
            client is gone), "error".
        n (int): Answers.
        max_tokens (int): Of each.
        seconds_to_first (float | None): From the request's admission to its first token.
        seconds (float): To its end.
        tickets (tuple[Ticket]): One an answer, each with times and tokens of its own.
    """

    id: str
    endpoint: str
    stream: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]
    n: int
    max_tokens: int
    seconds_to_first: float | None
    seconds: float
    tickets: tuple = ()


class Metrics:
    """What a service tells of its work: called in the event loop. This one keeps nothing; see `server.metrics`."""

    def finished(self, finished):
        """A request for answers is over (Finished)."""

    def rejected(self, status):
        """A request was not admitted: 429 or 503."""

    def grew(self, ticket, tokens, seconds):
        """An answer has grown by so many tokens, so long after it did so before; see `Runner.on_growth`."""

    def answered(self, route, method, status):
        """An HTTP request, of any kind, has ended."""

    def watch(self, engine):
        """An engine is there, and has warmed up."""

    def text(self):
        """bytes, for Prometheus."""
        return b""


@dataclass
class Service:
    """
    A model that answers over HTTP; `app.state.service`.

    Args:
        name (str): The model's id.
        tokenizer (QwenTokenizer): The model's.
        config (QwenConfig): The model's.
        settings (GenerationSettings): What a request doesn't say.
        chat (bool): Whether it is a chat model (ChatML).
        runner (Runner): None while the model is loaded.
        grammars (Grammars): None where there are none: what needs them is refused.
        limits (Limits): See there.
        metrics (Metrics): See there.
        state (str): "loading", "ready", "draining" or "dead".
        created (int): Seconds since 1970, of the model's card.
        thought (str): Where the thoughts before a tool's call go: "reasoning" (`reasoning_content`), or "content", as
            Qwen's openai_api.py has it.
        placement (str): Of the instruction with the tools: "qwen" or "last_query"; see `text.react`.
        tool_grammar (bool): Whether calls of tools are held to the tools' names and schemas while they are written.
        fingerprint (str): `system_fingerprint`.
    """

    name: str
    tokenizer: Any
    config: Any
    settings: GenerationSettings
    chat: bool = True
    runner: Any = None
    grammars: Any = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    state: str = "loading"
    created: int = 0
    thought: str = "reasoning"
    placement: str = "qwen"
    tool_grammar: bool = True
    fingerprint: str = f"qwen-mindspore-{__version__}"

    @property
    def room(self):
        """int, the most tokens of a prompt and its answer together."""
        return room_of(self.config)

    @property
    def condition(self):
        """str, `state`, or "dead" where the engine has died."""
        return "dead" if self.runner is not None and self.runner.is_dead else self.state

    def begin(self, runner):
        """Take requests: a Runner is there, over an engine that has warmed up."""
        self.runner = runner
        runner.on_growth = self.metrics.grew
        self.metrics.watch(runner.engine)
        runner.start()
        self.state = "ready"

    def load(self):
        """dict, what the engine is at: for who waits, and who shows it."""
        stats = self.runner.engine.stats()
        return {"running": stats.running, "waiting": stats.waiting}

    @property
    def most_answers(self):
        """int, the most answers of one request: more than fit in an empty queue are never let in."""
        return min(self.limits.max_n, self.limits.max_queued + self.runner.engine.max_batch)

    def report(self, scope, finished):
        """Tell metrics and the access log (`scope["state"]["finished"]`) that a request is over."""
        scope.setdefault("state", {})["finished"] = finished
        self.metrics.finished(finished)

    def admit(self, prompt_tokens, n=1):
        """
        Let a request in.

        Args:
            prompt_tokens (int): Of all its prompts together.
            n (int): Answers that it wants.

        Raises:
            ApiError: 503 while the server loads, drains or is dead; 429 where the queue is full.
        """
        try:
            self._admit(prompt_tokens, n)
        except Exception as error:
            self.metrics.rejected(error.status)
            raise

    def _admit(self, prompt_tokens, n):
        state, runner, limits = self.condition, self.runner, self.limits
        if state == "loading" or runner is None:
            raise unavailable("the model is being loaded: come again in a while", 5, "loading")
        if state != "ready":
            reason = "the engine has died" if state == "dead" else "the server is shutting down"
            raise unavailable(f"{reason}: no new requests are taken", 5, state)
        queued = len(runner.tickets) + n - runner.engine.max_batch
        if queued > limits.max_queued:
            raise overloaded(f"the queue is full: it holds {limits.max_queued} answers beside the "
                             f"{runner.engine.max_batch} that are computed at once; come again later",
                             runner.seconds_for(queued - limits.max_queued))
        tokens = runner.waiting_tokens + prompt_tokens
        if limits.max_queued_tokens and runner.waiting_tokens and tokens > limits.max_queued_tokens:
            raise overloaded(f"the queue is full: prompts of {runner.waiting_tokens} tokens wait, and with yours they "
                             f"were more than {limits.max_queued_tokens}; come again later",
                             runner.seconds_for(len(runner.tickets)))


def service_of(request):
    """The Service of a request's application."""
    return request.app.state.service
