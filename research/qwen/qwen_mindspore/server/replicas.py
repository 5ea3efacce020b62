"""
Several engines behind one address: a front without a model, and replicas of it that Ray Serve starts, watches and
replaces.

The front is this project's own: address, TLS, keys, limits, the page, draining and the log are those of a server with
one engine. What needs the model goes through a handle of Ray Serve to a replica, and comes back bit by bit. Ray Serve's
proxy is not used: it chooses a replica by the request's headers, before it has read the body, where the conversation
stands (serve/_private/proxy.py); through a handle, `server.routing` sees it.
"""
import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Match, Route

from qwen_mindspore.common.cluster import connect, environment_of, resources_of
from qwen_mindspore.server import chat, completions, info
from qwen_mindspore.server.errors import ApiError, error_of, error_response, overloaded, unavailable
from qwen_mindspore.server.lifecycle import Server
from qwen_mindspore.server.logs import log, note
from qwen_mindspore.server.middleware import route_path
from qwen_mindspore.server.places import Call, places_of, what_is_asked
from qwen_mindspore.server.service import Service
from qwen_mindspore.server.streams import DONE, event_of

__all__ = ["Fleet", "FleetServer", "Replicas"]

OWN = ("/health", "/ready", "/version", "/metrics")  # what the front tells by itself
PASSED_ON = (b"content-type", b"accept", b"user-agent")  # headers; keys stay here
CALLS = 100_000  # of a replica at once, as Ray Serve counts them: how many are too many the replica says itself
HEALTH_SECONDS = 5  # between two looks at a replica
BUSY_SECONDS = 60  # for which one may be too busy to answer such a look
METRICS_SECONDS = 5
LOOK_SECONDS = 0.5  # between two looks at what is being started


class Replicas:
    """
    The replicas of a server: an application of Ray Serve.

    Args:
        name (str): Its name on the cluster. Of two servers with one name the later one takes the replicas over.
        build (function): See `Replica`; must be there, by its module and name, on every machine.
        arguments (tuple): Its first ones.
        count (int): Replicas.
        capacity (int): Answers that each computes at once.
        address (str): Of the cluster, see `common.cluster.connect`.
        wanted (dict[str, float] | None), target (str): What each takes, see `common.cluster.resources_of`.
        verbose (bool): Ray may say what it has to say.

    Attributes:
        places (Places): Which are up, and what they are at.
    """

    is_dead = False  # what can't go on is replaced

    def __init__(self, name, build, arguments, count, capacity, address="local", wanted=None, target="CPU",
                 verbose=False):
        self.name, self.build, self.arguments, self.count, self.capacity = name, build, arguments, count, capacity
        self.address, self.wanted, self.target, self.verbose = address, wanted, target, verbose
        self.places, self._handle, self._ray, self._is_deployed = places_of(name, capacity), None, None, False
        self._tasks = {}  # Call -> the task that passes its answer on
        # A cluster of this machine ends with the thread that has made it (PR_SET_PDEATHSIG), and this one stays.
        self._thread = ThreadPoolExecutor(1, "ray")

    # Life

    def start(self):
        """
        Start them, and wait until one can answer. Takes as long as loading a model; any thread.

        Returns:
            Replicas, itself.

        Raises:
            ValueError: No such cluster, or no replica can be started, and why.
        """
        self._ray = self._thread.submit(connect, self.address, "serve", "--replicas", self.verbose).result()
        from ray import serve
        from ray.serve.config import RequestRouterConfig

        from qwen_mindspore.server.replica import Replica
        from qwen_mindspore.server.routing import StickyRouter

        resources, missing = resources_of(self._ray, self.count, self._wants(), self.target)
        if missing:
            log(f"{self.count} replicas take {missing}: those that find no place wait for it")
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        router = f"{StickyRouter.__module__}:{StickyRouter.__name__}"
        deployment = serve.deployment(Replica).options(
            name="replica", num_replicas=self.count, max_ongoing_requests=CALLS, max_constructor_retry_count=1,
            health_check_period_s=HEALTH_SECONDS, health_check_timeout_s=BUSY_SECONDS, graceful_shutdown_timeout_s=1,
            request_router_config=RequestRouterConfig(request_router_class=router),
            ray_actor_options={**resources, "runtime_env": {"env_vars": environment_of(resources)}})
        application = deployment.bind(self.build, self.arguments, os.getcwd())
        target = serve.RunTarget(target=application, name=self.name, route_prefix=None)
        if self.name in serve.status().applications:  # of a server that was killed
            serve.delete(self.name)
        self._is_deployed = True
        self._handle, = serve.run_many([target], wait_for_applications_running=False)
        self._await_one(serve)
        return self

    def _wants(self):
        """dict | None, what each takes; on NPUs that Ray has not found, the replica's number says which is its own."""
        if self.wanted or self.target != "Ascend" or self._ray.cluster_resources().get("NPU"):
            return self.wanted
        return {"CPU": 1.0}

    def _await_one(self, serve):
        is_asked = False
        while self._ray is not None:
            told = serve.status().applications[self.name]
            deployment = next(iter(told.deployments.values()), None)
            if told.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ValueError(_reason(f"{told.message}\n{deployment.message if deployment else ''}"))
            if deployment and deployment.replica_states.get("RUNNING"):
                if not is_asked:
                    self._ask("metrics")  # with its first call the handle learns where the replicas are
                    is_asked = True
                if self.places.up:
                    return
            time.sleep(LOOK_SECONDS)
        raise RuntimeError("stopped while replicas were being started")

    def stop(self, timeout=None):
        """End them; also while they are being started."""
        if self._ray is None:
            return
        if self._is_deployed and self.address != "local":
            from ray import serve
            serve.delete(self.name, _blocking=False)
        ray, self._ray, self.places.up = self._ray, None, {}
        ray.shutdown()
        self._thread.shutdown()

    def abort(self, error):
        """End all calls: who waits finds the error."""
        for call, task in list(self._tasks.items()):
            call.error = error
            task.cancel()

    # Work

    def metrics(self):
        """list[(number, samples)], what each replica has counted; not in the event loop."""
        return self._ask("metrics") if self.places.up else []

    def _ask(self, method):
        """What a method of each replica returns; of those that answer in time."""
        try:
            told = self._handle.broadcast(method).results(timeout_s=METRICS_SECONDS, return_exceptions=True)
        except TimeoutError:
            return []
        return [entry for entry in told if not isinstance(entry, Exception)]

    async def answer(self, call, scope, body, send):
        """
        Have a replica answer, and pass it on.

        Args:
            call (Call): What is asked for.
            scope (dict), body (bytes): The request.
            send (Outlet): Takes ASGI's messages.
        """
        task = self._tasks[call] = asyncio.current_task()
        try:
            while await self._is_refused(call, scope, body, send):
                call.refused.add(call.replica)
        finally:
            self.places.end(call)
            if self._tasks.get(call) is task:
                del self._tasks[call]

    async def _is_refused(self, call, scope, body, send):
        """Whether the replica that was chosen won't, and another may."""
        handle, parts = self._handle.options(stream=True, method_name="answer"), None
        try:
            async with handle.choose_replica(call) as chosen:
                call.replica = chosen.replica_id
                parts = handle.dispatch(chosen, scope, body)
                start, data, notes = await anext(parts)
            call.refused.add(call.replica)
            if start[0] in (429, 503) and self.places.has_another(call):
                return True
            note(replica=self.places.number(call))
            await send.start(*start)
            while True:
                await send.body(data, notes)
                if notes is not None:
                    parts = None
                    return False
                _, data, notes = await anext(parts)
        finally:
            if parts is not None:
                parts.cancel()


def _reason(message):
    """Why a replica could not be built, of what Ray Serve tells: the last error of its tracebacks."""
    found = re.findall(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit)): (.+)$", message, re.MULTILINE)
    kind, text = found[-1] if found else ("", " ".join(message.split())[-500:])
    return text if kind in ("ValueError", "OSError", "FileNotFoundError", "") else f"{kind}: {text}"


class Outlet:
    """Sends a response; knows how far it has come."""

    def __init__(self, send):
        self.send, self.status, self.is_stream, self.is_over = send, None, False, False

    async def start(self, status, headers):
        """Its beginning."""
        self.status = status
        self.is_stream = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data, notes=None):
        """More of it; with notes for the log, its end."""
        self.is_over = notes is not None
        if self.is_over:
            note(**notes)
        if data or self.is_over:
            await self.send({"type": "http.response.body", "body": data, "more_body": not self.is_over})

    async def fail(self, error, scope, receive):
        """Tell an error, in the way that is still open."""
        if self.status is None:
            await error_response(error)(scope, receive, self.send)
        elif self.is_stream and not self.is_over:
            note(error=error_of(error).message)
            await self.body(event_of(error_of(error).body()) + DONE, {})
        else:
            raise error  # half a body: the connection ends


@dataclass
class Fleet(Service):
    """
    A model that several replicas answer for: the front's Service, without tokenizer and engine.

    Args:
        replicas (int): How many there should be.
    """

    tokenizer: Any = None
    config: Any = None
    settings: Any = None
    replicas: int = field(default=1, kw_only=True)

    @property
    def condition(self):
        """str, see `Service`; "loading", too, while none is up: they are being replaced."""
        return "loading" if self.state == "ready" and not self.runner.places.up else self.state

    def begin(self, runner):
        """Take requests: Replicas have started."""
        self.runner = self.metrics.replicas = runner
        self.state = "ready"

    def load(self):
        """dict, see `Service`; and how many replicas answer."""
        running, waiting = self.runner.places.count()
        return {"running": running, "waiting": waiting, "replicas": self.replicas,
                "replicas_up": len(self.runner.places.up)}

    def _admit(self, prompt_tokens, n):
        state, places, queued = self.condition, self.runner and self.runner.places, self.limits.max_queued
        if state == "loading":
            raise self.is_loading()
        if state != "ready":
            raise unavailable("the server is shutting down: no new requests are taken", 5, state)
        running, waiting = places.count()
        if running + waiting + n > len(places.up) * (places.capacity + queued):
            raise overloaded(f"the queues are full: each holds {queued} answers beside the {places.capacity} that a "
                             "replica computes at once; come again later")

    @staticmethod
    def is_loading():
        """The ApiError (503) while nobody can answer."""
        return unavailable("the model is being loaded: come again in a while", 5, "loading")


class FleetServer(Server):
    """
    The Server of a Fleet: `load` is `Replicas.start`. What needs the model, its application passes on; the routes that
    would answer here stay for the interface's document.
    """

    def __init__(self, config, service, load=None, activity=None, drain_seconds=30.0):
        super().__init__(config, service, load, activity, drain_seconds)
        self.replicas = load.__self__
        config.app.router.routes[0:0] = _passed_on()

    def run(self, sockets=None):
        """uvicorn's; replicas that a cluster of others would keep end with it, however it ends."""
        try:
            super().run(sockets)
        finally:
            self.replicas.stop()

    def _loaded(self, replicas, failure):
        if failure is not None or self.signals:
            super()._loaded(replicas, failure)
            return
        self.service.begin(replicas)
        log("ready", model=self.service.name, replicas=self.service.replicas, replicas_up=len(replicas.places.up),
            max_batch=replicas.capacity, seconds=round(time.monotonic() - self.began, 1))


def _passed_on():
    return [_Forwarded(route.path, route.methods) for part in (chat, completions, info)
            for route in part.router.routes if route.path not in OWN]


class _Forwarded(Route):
    """A route that a replica answers."""

    def __init__(self, path, methods):
        super().__init__(path, _Passed(), methods=sorted(methods))

    def matches(self, scope):
        """Starlette's; what the metrics call the route is told, too."""
        match, child = super().matches(scope)
        if match != Match.NONE:
            child["route"] = self
        return match, child


class _Passed:
    """An ASGI application: a replica's, somewhere else. New answers the application has admitted: see `app`."""

    async def __call__(self, scope, receive, send):
        fleet = scope["app"].state.service
        if fleet.condition == "loading":
            raise fleet.is_loading()
        body = (await receive()).get("body", b"")  # `middleware.Bodies` has it whole
        call, outlet = Call(*what_is_asked(body)), Outlet(send)
        job = asyncio.ensure_future(fleet.runner.answer(call, _sent(scope), body, outlet))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            is_gone = not job.done()
            job.cancel()
            try:
                await job
            except asyncio.CancelledError:
                if call.error is None:
                    if not is_gone:
                        raise
                    return
                await outlet.fail(ApiError(500, f"the answer failed: {call.error}", code="generation_failed"), scope,
                                  receive)
            except Exception as error:
                await outlet.fail(_told(error), scope, receive)
        finally:
            gone.cancel()
            job.cancel()


async def _gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


def _sent(scope):
    """What of a request goes to a replica: nothing that only the front needs, and no keys."""
    sent = {name: scope[name] for name in ("type", "http_version", "method", "query_string")
            if name in scope}
    headers = [(name, value) for name, value in scope["headers"] if name in PASSED_ON]
    return {**sent, "asgi": {"version": "3.0"}, "scheme": "http", "root_path": "", "headers": headers,
            "path": route_path(scope), "state": {"request_id": scope["state"]["request_id"]}}


def _told(error):
    """The ApiError of what went wrong between here and a replica."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, (RayActorError, StopAsyncIteration)):
        return unavailable("the replica that answered has died: ask again", 1, "replica_died")
    if isinstance(error, RayTaskError):
        return ApiError(500, f"a replica failed: {error.cause or error}")
    return error
