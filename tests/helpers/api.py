"""The server's interface over a scripted engine: in this process, or on a port of this machine."""
import asyncio
import contextlib
import json
import socket
import threading

import httpx
import uvicorn
from fastapi import FastAPI

from helpers.scripted import scripted_service
from helpers.serving import until
from qwen_mindspore.server import chat, completions
from qwen_mindspore.server.errors import install_handlers

__all__ = ["Api", "events_of", "served", "until"]


def app_of(tokenizer, engine, **changes):
    """The routes that answer, as an application whose `state.service` is there while it runs."""
    @contextlib.asynccontextmanager
    async def lifespan(app):
        with scripted_service(tokenizer, engine, asyncio.get_running_loop(), **changes) as app.state.service:
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(chat.router)
    app.include_router(completions.router)
    install_handlers(app)
    return app


class Api:
    """
    A client within this process, with the server's event loop in a thread of its own. At the end nothing may be left
    in the engine.

        with Api(tokenizer, ScriptedEngine("Hello!")) as api:
            answer = api.chat("Hi")
    """

    def __init__(self, tokenizer, engine, **changes):
        self.engine, self.app = engine, app_of(tokenizer, engine, **changes)
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.run(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60)
        self.service = self.app.state.service
        return self

    def __exit__(self, *error):
        try:
            if error[0] is None:
                until(lambda: not self.engine.sequences)
                assert not self.service.runner.tickets and self.service.runner.waiting_tokens == 0
        finally:
            self.run(self._lifespan.__aexit__(None, None, None))
            self.loop.call_soon_threadsafe(self.loop.stop)

    def start(self, coroutine):
        """Have the event loop run a coroutine; its concurrent Future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine):
        """What a coroutine gives that the event loop runs."""
        return self.start(coroutine).result(60)

    def request(self, method, path, **fields):
        """The Response, see `httpx.AsyncClient.request`."""
        return self.run(self.client.request(method, path, **fields))

    def post(self, path, body, status=200):
        """The Response, whose status is looked at."""
        response = self.request("POST", path, json=body)
        assert response.status_code == status, response.text
        return response

    def chat(self, messages="Hi", **fields):
        """The JSON of an answer, or its events with `stream`; `messages` may be one user's text."""
        return self._asked("/v1/chat/completions", {"messages": messages_of(messages), **fields})

    def complete(self, prompt, **fields):
        """The same of a completion."""
        return self._asked("/v1/completions", {"prompt": prompt, **fields})

    def refused(self, status=400, **fields):
        """The `error` of a chat request (with `prompt` of a completion) that is refused, streaming or not."""
        path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
        if "prompt" not in fields:
            fields["messages"] = messages_of(fields.get("messages", "Hi"))
        errors = []
        for stream in (False, True):
            response = self.post(path, {**fields, "stream": stream}, status)
            assert response.headers["content-type"] == "application/json"
            errors.append(response.json()["error"])
        assert errors[0] == errors[1] and {"message", "type", "param", "code"} <= set(errors[0])
        assert "\n" not in errors[0]["message"]
        return errors[0]

    def _asked(self, path, body):
        response = self.post(path, body)
        return events_of(response.text) if body.get("stream") else response.json()


def messages_of(messages):
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def events_of(text):
    """The JSON of a stream's events; the last one must be [DONE]."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


@contextlib.contextmanager
def served(app):
    """A server of its own thread on a free port; the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        until(lambda: server.started, 20)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
