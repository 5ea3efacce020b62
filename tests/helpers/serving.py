"""
A server of its own for a test: uvicorn on loopback, in a thread, over a scripted engine.

    with serving(tokenizer, ScriptedEngine("Hello!")) as server:
        httpx.get(server.url + "/health", trust_env=False)
"""
import contextlib
import threading
import time

import httpx
import uvicorn

from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.address import bind, url_of
from qwen_mindspore.server.app import create_app
from qwen_mindspore.server.lifecycle import Server
from qwen_mindspore.server.metrics import Metrics
from qwen_mindspore.server.service import Service

__all__ = ["Running", "running", "serving", "until"]


class Running:
    """A server that runs: `url`, `service`, `server` (lifecycle.Server), `engine`, `client` (httpx.Client)."""

    def __init__(self, service, server, engine, url):
        self.service, self.server, self.engine, self.url = service, server, engine, url
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def get(self, path, **options):
        return self.client.get(path, **options)

    def post(self, path, content, **options):
        """POST of JSON, or of bytes as they are."""
        if isinstance(content, bytes):
            headers = {"Content-Type": "application/json", **options.pop("headers", {})}
            return self.client.post(path, content=content, headers=headers, **options)
        return self.client.post(path, json=content, **options)


def until(condition, seconds=30):
    """Wait until something is so; AssertionError where it doesn't come true. Returns what it was."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def running(kind, app, service, load, drain_seconds, engine=None, **options):
    """A server of a kind (lifecycle.Server, or one derived from it) on a free port of this machine: Running."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2, **options)
    server = kind(config, service, load, app.state.activity, drain_seconds)
    thread = threading.Thread(target=server.run, args=([listener],), name="serving", daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    found = Running(service, server, engine, url_of(listener).rstrip("/"))
    found.thread = thread
    try:
        yield found
    finally:
        found.client.close()
        if hasattr(engine, "hold"):
            engine.hold.set()
        server.signals += 2
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(tokenizer, engine, load=None, is_ready=True, routes=(), drain_seconds=5, service_options=None,
            uvicorn_options=None, **options):
    """
    Args:
        tokenizer, engine: See `scripted`; or any engine.
        load (function): Builds Answers; default: those of the engine, at once.
        is_ready (bool): Wait until it is loaded.
        routes (Sequence[APIRouter]): More of them.
        service_options (dict): Fields of the Service.
        uvicorn_options (dict): More of uvicorn.Config.
        options: Of `create_app`.
    """
    fields = {"metrics": Metrics("qwen-test"), **(service_options or {})}
    settings = GenerationSettings(chat_format="chatml" if fields.get("chat", True) else "raw", max_new_tokens=100)
    service = Service("qwen-test", tokenizer, engine.config, settings, **fields)
    app = create_app(service, **options)
    for router in routes:
        app.router.routes[0:0] = router.routes
    load = load or (lambda: Answers(engine, tokenizer))
    try:
        with running(Server, app, service, load, drain_seconds, engine, **(uvicorn_options or {})) as server:
            if is_ready:
                until(lambda: service.state == "ready")
            yield server
    finally:
        if service.runner is not None:
            service.runner.stop(10)
