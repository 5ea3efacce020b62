"""
Answers on their way to the client: whole, or as server-sent events while they grow; and the client that hangs up.

A stream that waits for its reader holds nothing: what has grown meanwhile is read from the answer and becomes one
event. Who hangs up ends what was asked for with the engine's next step, streaming or not.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""
import asyncio
import contextlib
import json

from starlette.responses import Response

__all__ = ["DONE", "EventStream", "dumps", "event_of", "whole"]

DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n\n"
# Some readers take these for ends of lines (Python's str.splitlines), and JSON lets them stand.
LINE_ENDS = ("\x85", "\u2028", "\u2029")


def dumps(value):
    """bytes, JSON on one line, whatever is counted as a line's end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii() and any(end in text for end in LINE_ENDS):
        return json.dumps(value, separators=(",", ":")).encode()
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON lets one write it
        return json.dumps(value, separators=(",", ":")).encode()


def event_of(value):
    """bytes, an event that holds JSON."""
    return b"data: %b\n\n" % dumps(value)


async def _watch(receive, job):
    """End a job when its client is gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            job.leave()
            return


@contextlib.asynccontextmanager
async def _watched(receive, job):
    watcher = asyncio.ensure_future(_watch(receive, job))
    try:
        yield
    finally:
        watcher.cancel()
        job.close()


async def whole(request, job, response):
    """
    Wait for all answers of a job.

    Args:
        request (Request): Whose client is watched.
        job (Job): What it asks for.
        response (Callable[[], dict]): Makes the body, once all is there.

    Returns:
        Response.

    Raises:
        ApiError: An answer has failed.
    """
    try:
        async with _watched(request.receive, job):
            while not job.is_over and not job.failure:
                await job.event.wait()
                job.event.clear()
        if job.is_gone:
            return Response(status_code=499)  # nobody reads it but the log; nginx's number
        if job.failure:
            raise job.failure
        return Response(dumps(response()), media_type="application/json")
    finally:
        job.report(request.scope)


class EventStream(Response):
    """
    The response that tells a job's answers while they grow.

    Args:
        job (Job): What is asked for; its tickets are there already, so that what is wrong has been told by a status.
        writer: Makes the events: `begin() -> bytes`, `event(choice, piece) -> bytes`, may be empty, for each choice
            that has something new, and `end() -> bytes`, behind all of them.
        ping_seconds (float): See `Limits`.
    """

    media_type = "text/event-stream"

    def __init__(self, job, writer, ping_seconds):
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, "text/event-stream")
        del self.headers["content-length"]
        self.job, self.writer, self.ping_seconds = job, writer, ping_seconds
        self._sent_at, self._is_due, self._timer = 0.0, False, None

    async def __call__(self, scope, receive, send):
        try:
            async with _watched(receive, self.job):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                loop = asyncio.get_running_loop()
                self._arm(loop)
                async for data in self._events():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self._sent_at, self._is_due = loop.time(), False
                if not self.job.is_gone:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # a server may say so where the client is gone
            self.job.leave()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.job.report(scope)

    async def _events(self):
        job, writer = self.job, self.writer
        left = list(job.choices)
        yield writer.begin() + (self._ping() if job.queued() else b"")
        while not job.is_gone:
            data = b""
            for choice in list(left):
                piece = choice.read()
                if piece is None:
                    continue
                if piece.is_over:
                    left.remove(choice)
                    if choice.fail():
                        yield data + event_of(choice.fail().body()) + DONE
                        return
                data += writer.event(choice, piece)
            if not left:
                yield data + writer.end() + DONE
                return
            if data:
                yield data
            elif self._is_due:
                yield self._ping()
            await job.event.wait()
            job.event.clear()

    def _ping(self):
        """A comment: that the connection lives, and how many are ahead in the queue."""
        ahead = self.job.queued()
        return b": queued %d\n\n" % ahead if ahead else PING

    def _arm(self, loop):
        """Look again when the stream will have been silent for as long as it may."""
        now = loop.time()
        self._is_due = bool(self._sent_at) and now - self._sent_at >= self.ping_seconds
        if self._is_due:
            self.job.event.set()
        if self.ping_seconds > 0:
            wait = self.ping_seconds - (0 if self._is_due or not self._sent_at else now - self._sent_at)
            self._timer = loop.call_later(wait, self._arm, loop)
