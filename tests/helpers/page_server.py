"""
A server with the page and answers that a test has written: OpenAI's streaming protocol, without a model.

    with PageServer() as server:
        server.answers.append(Scripted(["Hel", "lo"]))
        ...  # the page asks at server.url
        assert server.requests[-1]["messages"] == [...]

It runs in a thread; what is not scripted is answered with "You said: " and the question.
"""
import asyncio
import json
import socket
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from helpers import ROOT

PAGE = ROOT / "research/qwen/qwen_mindspore/server/page"
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'"
USAGE = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42,
         "prompt_tokens_details": {"cached_tokens": 20}}


def call_deltas(name, arguments, id="call_1", pieces=2):
    """The deltas of a tool call: its name, then its arguments in pieces."""
    size = -(-len(arguments) // pieces)
    head = {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [arguments[start:start + size] for start in range(0, len(arguments), size)]
    return [{"tool_calls": [head]}, *({"tool_calls": [{"index": 0, "function": {"arguments": text}}]} for text in rest)]


@dataclass
class Scripted:
    """
    One answer.

    Args:
        pieces (list[str | dict | None]): texts or whole deltas, one an event; None: a comment that keeps alive.
        pace (float): seconds before each piece; wait (float): seconds before the first, on top.
        finish (str): the finish reason; None: the connection ends without one, as if it had broken.
        status (int), error (dict), headers (dict): an answer other than 200 has these instead.
        event (dict): an error event at the end.
        cut (int): the stream is sent in pieces of so many bytes, wherever events begin.
    """

    pieces: list = field(default_factory=list)
    pace: float = 0.0
    wait: float = 0.0
    finish: str | None = "stop"
    usage: dict | None = field(default_factory=lambda: dict(USAGE))
    status: int = 200
    error: dict | None = None
    headers: dict = field(default_factory=dict)
    event: dict | None = None
    comment: str = "keep-alive"
    cut: int | None = None


class PageServer:
    """
    Attributes:
        answers (list[Scripted]): of the next requests, taken from the front.
        requests (list[dict]): bodies of the requests that came, with "path" and "authorization" beside.
        aborted (int): streams that their reader left; running (int): streams that are being written.
        models (list[dict]), cards (dict): what /v1/models and, where it tells more, /v1/models/{id} tell.
        key (str): the API key that is wanted, or None.
        loading (float): until this time (time.monotonic) everything below /v1 is 503.
    """

    def __init__(self, page=PAGE):
        self.answers, self.requests, self.aborted, self.running = [], [], 0, 0
        self.models, self.cards, self.key, self.loading = [{"id": "qwen-demo", "object": "model"}], {}, None, 0.0
        routes = [
            Route("/v1/models", self._models), Route("/v1/models/{id}", self._model),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
            Mount("/", StaticFiles(directory=page, html=True)),
        ]
        self.app = Starlette(routes=routes)

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        config = uvicorn.Config(self._with_policy, host="127.0.0.1", port=port, log_level="error", interface="asgi3",
                                timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline and self._thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)

    def reset(self):
        """As it was at the beginning."""
        self.answers, self.requests, self.aborted = [], [], 0
        self.models, self.cards, self.key, self.loading = [{"id": "qwen-demo", "object": "model"}], {}, None, 0.0

    def wait_until(self, condition, seconds=10):
        """Wait for something that the page causes here."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it has not come true"
            time.sleep(0.02)

    async def _with_policy(self, scope, receive, send):
        async def with_header(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)
        await self.app(scope, receive, with_header if scope["type"] == "http" else send)

    def _refusal(self, request):
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided", {})
        if time.monotonic() < self.loading:
            return _error(503, "the model is loading", {"Retry-After": "1"})
        return None

    async def _models(self, request):
        return self._refusal(request) or JSONResponse({"object": "list", "data": self.models})

    async def _model(self, request):
        id = request.path_params["id"]
        card = self.cards.get(id) or next((model for model in self.models if model["id"] == id), None)
        return self._refusal(request) or (JSONResponse(card) if card else _error(404, "no such model", {}))

    async def _answer(self, request):
        refusal = self._refusal(request)
        body = await request.json()
        heard = {**body, "path": request.url.path, "authorization": request.headers.get("authorization")}
        self.requests.append(heard)
        if refusal:
            return refusal
        asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        answer = self.answers.pop(0) if self.answers else Scripted(["You said: ", asked])
        if answer.status != 200:
            return _error(answer.status, **{"message": "refused", "headers": answer.headers, **(answer.error or {})})
        is_text = request.url.path == "/v1/completions"
        return StreamingResponse(self._stream(answer, is_text), media_type="text/event-stream")

    async def _stream(self, answer, is_text):
        self.running += 1
        try:
            if answer.cut:
                whole = b"".join([event async for event in _events(answer, is_text)])
                for start in range(0, len(whole), answer.cut):
                    yield whole[start:start + answer.cut]
                    await asyncio.sleep(0.002)
            else:
                async for event in _events(answer, is_text):
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise
        finally:
            self.running -= 1


def _error(status, message, headers, **more):
    return JSONResponse({"error": {"message": message, "type": "error", "param": None, "code": None, **more}}, status,
                        headers=headers)


async def _events(answer, is_text):
    def event(choices, **more):
        data = {"id": "cmpl-1", "object": "chunk", "created": 0, "model": "qwen-demo", "choices": choices, **more}
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()

    def grown(delta, finish=None):
        grown = {"text": delta.get("content", "")} if is_text else {"delta": delta}
        return event([{"index": 0, **grown, "finish_reason": finish}])

    if not is_text:
        yield grown({"role": "assistant", "content": None})
    await asyncio.sleep(answer.wait)
    for piece in answer.pieces:
        await asyncio.sleep(answer.pace)
        if piece is None:
            yield f": {answer.comment}\n\n".encode()
        else:
            yield grown({"content": piece} if isinstance(piece, str) else piece)
    if answer.event:
        yield f"data: {json.dumps({'error': answer.event})}\n\n".encode()
    if answer.finish:
        yield grown({}, answer.finish)
        if answer.usage:
            yield event([], usage=answer.usage)
        yield b"data: [DONE]\n\n"
