"""
From a bound socket to an exit code: listens at once, loads the model beside that, answers, and ends in order.

SIGTERM or SIGINT: no new requests (503), those that are there have `drain_seconds` to end, then their streams end with
an error event. A second signal: at once.
"""
import asyncio
import contextlib
import gc
import logging
import signal
import threading
import time

import uvicorn

from qwen_mindspore.server.address import url_of
from qwen_mindspore.server.logs import log
from qwen_mindspore.server.runner import Runner

__all__ = ["IDLE_SECONDS", "LAST_WORDS", "Server", "serve", "warm_up"]

LAST_WORDS = 5  # seconds in which streams that were ended may still be sent
IDLE_SECONDS = 75  # for which a connection without a request is kept: longer than clients keep theirs
STEP_SECONDS = 10  # in which a step of the engine should be over
CUT_OFF = 128 + signal.SIGINT  # the exit code where answers were cut off, as of any command that is interrupted


def warm_up(answers, settings):
    """
    Have an engine compile what answering takes, prefill and decode, one at a time and several at once.

    Args:
        answers (Answers): Over the engine.
        settings (GenerationSettings): Those of requests that say nothing.
    """
    settings = settings.override(max_new_tokens=3)
    hello = answers.tokenizer.encode("Hello")
    for count in dict.fromkeys((1, min(2, answers.engine.max_batch))):
        for number in range(count):
            answers.add([*hello, number], settings, f"warm-up {number}")
        while answers.has_work:
            for answer in answers.step():
                if answer.error:
                    raise answer.error


class Server(uvicorn.Server):
    """
    uvicorn, with our way to begin and to end.

    Args:
        config (uvicorn.Config): Of the application.
        service (Service): Its state is kept here.
        load (function): Builds the model, in a thread of its own; returns Answers. None: the service is ready.
        activity (Activity): Of the application.
        drain_seconds (float): How long answers may take to end.

    Attributes:
        failure (Exception): Why the model could not be loaded.
        was_cut (bool): Answers were cut off at the end.
    """

    def __init__(self, config, service, load=None, activity=None, drain_seconds=30.0):
        super().__init__(config)
        self.service, self.activity, self.drain_seconds = service, activity, drain_seconds
        self.failure, self.was_cut, self.signals, self.deadline = None, False, 0, None
        self.is_told = False  # that the engine has died
        self.loader = threading.Thread(target=self._load, args=(load,), name="load", daemon=True) if load else None

    async def startup(self, sockets=None):
        """Listen, and begin to load."""
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        for listener in sockets or ():
            log("listening", url=url_of(listener, bool(self.config.ssl)), model=self.service.name)
        if self.loader:
            log("loading the model", model=self.service.name)
            self.began = time.monotonic()
            self.loader.start()

    def _load(self, load):
        try:
            answers, failure = load(), None
            # What the imports and the model have made stays: to look through it for garbage would hold everybody up,
            # for a tenth of a second each time.
            gc.collect()
            gc.freeze()
        except BaseException as error:
            answers, failure = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            self.loop.call_soon_threadsafe(self._loaded, answers, failure)

    def _loaded(self, answers, failure):
        if failure is not None:
            self.failure, self.should_exit = failure, True
            self.service.state = "dead"
        elif not self.signals:
            service, seconds = self.service, time.monotonic() - self.began
            service.begin(Runner(answers, self.loop))
            log("ready", model=service.name, max_batch=answers.engine.max_batch, context=service.room,
                seconds=round(seconds, 1))

    # The end

    @contextlib.contextmanager
    def capture_signals(self):
        """Count SIGINT and SIGTERM while serving; `on_tick` looks at them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig, frame):
        """A signal."""
        self.signals += 1

    async def on_tick(self, counter):
        """What uvicorn calls ten times a second; True: it is time to end."""
        if self.service.condition == "dead" and not self.is_told:
            self.is_told = True
            log("the engine has died: nothing is answered any more", logging.CRITICAL)
        if self.signals and self.deadline is None:
            self._drain()
        if self.deadline is not None:
            is_late = self.signals > 1 or time.monotonic() >= self.deadline
            if not self.activity.count or is_late:
                self._end()
        return await super().on_tick(counter)

    def _drain(self):
        self.deadline = time.monotonic() + self.drain_seconds
        self.service.state = "draining"
        log("draining: no new requests are taken", requests=self.activity.count, seconds=self.drain_seconds)

    def _end(self):
        runner = self.service.runner
        if self.activity.count:
            self.was_cut = True
            log("ending what is not finished", logging.WARNING, requests=self.activity.count)
            if runner is not None:
                runner.abort(RuntimeError("the server is shutting down: the answer is not finished"))
        self.should_exit = True


def serve(server, sockets):
    """
    Serve till the end.

    Args:
        server (Server): Serves.
        sockets (list[socket.socket]): Listen; see `bind`.

    Returns:
        int, the exit code: 0 where every answer was finished, 130 where some were cut off.

    Raises:
        Exception: What loading the model failed with.
    """
    server.run(sockets)
    if server.service.runner is not None:
        server.service.runner.stop(STEP_SECONDS)
    if server.failure is not None:
        raise server.failure
    log("stopped", cut_off=server.was_cut)
    return CUT_OFF if server.was_cut else 0
