"""
One of several engines, in a process of its own on a Ray cluster: the routes of the server without what stands before
them, which is the front's: see `server.replicas`.
"""
import asyncio
import logging
import os

from fastapi import FastAPI
from ray import serve

from qwen_mindspore.server import chat, completions, info
from qwen_mindspore.server.errors import install_handlers
from qwen_mindspore.server.logs import LOG, NOTES
from qwen_mindspore.server.runner import Runner

__all__ = ["Replica"]


class Replica:
    """
    A deployment of Ray Serve.

    Args:
        build (function): Called with `arguments` and the replica's number, 0 to N - 1; returns (Service, function):
            the function loads the model and returns Answers.
        arguments (tuple): Its first ones.
        folder (str): Where the command was given: paths may start there.
    """

    async def __init__(self, build, arguments, folder):
        os.chdir(folder)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self.number = serve.get_replica_context().rank.rank
        self.service, answers = await asyncio.to_thread(_load, build, arguments, self.number)
        self.service.begin(Runner(answers, asyncio.get_running_loop()))
        self.app = _app_of(self.service)

    def record_replica_metadata(self):
        """Ray's: what the front knows of this replica."""
        return {"number": self.number}

    async def check_health(self):
        """Ray's: an exception, a few times in a row, and the replica is replaced."""
        if self.service.runner.is_dead:
            raise RuntimeError("the engine has died")

    async def answer(self, scope, body):
        """
        Answer a request.

        Args:
            scope (dict): ASGI's.
            body (bytes): All of it.

        Yields:
            (tuple[int, list] | None, bytes, dict | None): status and headers, once, in front; what has come of the
            body since the last time; behind all of it, what the line of the log says of the request.
        """
        exchange = _Exchange(body)
        task = asyncio.ensure_future(exchange.run(self.app, scope))
        try:
            while True:
                part = await exchange.next()
                yield part
                if part[2] is not None:
                    return
        finally:
            # Nobody reads any more, if there is more: the application sees a client that has hung up.
            exchange.is_left.set()
            await asyncio.wait({task}, timeout=10)

    async def metrics(self):
        """(int, list), its number, and what it has counted: see `Metrics.samples`."""
        return self.number, self.service.metrics.samples()


def _load(build, arguments, number):
    service, load = build(*arguments, number)
    return service, load()


def _app_of(service):
    """The routes that need the model; errors as anywhere."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    install_handlers(app)
    for routes in (chat, completions, info):
        app.include_router(routes.router)
    return app


class _Exchange:
    """A request and its response, between an application and who reads them bit by bit."""

    def __init__(self, body):
        self.body, self.is_left, self._has_more, self._is_read = body, asyncio.Event(), asyncio.Event(), False
        self._start, self._data, self._notes, self._is_over = None, [], {}, False

    async def run(self, app, scope):
        """Have the application answer."""
        NOTES.set(self._notes)
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            LOG.exception("a request failed")  # and has been answered so
        finally:
            self._is_over = True
            self._has_more.set()

    async def _receive(self):
        if self._is_read:
            await self.is_left.wait()
            return {"type": "http.disconnect"}
        self._is_read = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self._start = (message["status"], [*message.get("headers", ())])
            return
        self._data.append(message.get("body", b""))
        self._has_more.set()

    async def next(self):
        """See `Replica.answer`. What comes while nobody looks is told at once."""
        await self._has_more.wait()
        self._has_more.clear()
        start, self._start, data, self._data = self._start, None, b"".join(self._data), []
        return start, data, self._notes if self._is_over else None
