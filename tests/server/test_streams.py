"""On the wire: clients that hang up, read slowly or wait long, and what is told of each request in the end."""
import asyncio
import contextlib
import http.client
import json
import socket
import time

import pytest

from helpers.api import Api, app_of, events_of, served, until
from helpers.scripted import ScriptedEngine
from qwen_mindspore.server.errors import unavailable
from qwen_mindspore.server.service import Limits, Metrics

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}


class Told(Metrics):
    """Keeps what it is told."""

    def __init__(self):
        self.requests, self.tokens = [], 0

    def finished(self, finished):
        self.requests.append(finished)

    def grew(self, ticket, tokens, seconds):
        assert tokens > 0 and seconds >= 0
        self.tokens += tokens


@contextlib.contextmanager
def running(tokenizer, engine, **changes):
    """(the service, its port), and nothing is left in the end."""
    app = app_of(tokenizer, engine, **changes)
    with served(app) as port:
        yield app.state.service, port
        until(lambda: not engine.sequences)
        assert not app.state.service.runner.tickets and app.state.service.runner.waiting_tokens == 0


def send(port, body, buffer=None):
    """A socket on which a request has been sent."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", port))
    content = json.dumps(body).encode()
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    connection.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                       b"Content-Length: %d\r\n\r\n%b" % (path.encode(), len(content), content))
    return connection


def read_all(connection):
    """(status, text of the body)."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read().decode()


# Hanging up

@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_leaves_the_engine_within_a_step(tokenizer, stream):
    engine, told = ScriptedEngine("x" * 390, pace=0.02, room=4096), Told()
    with running(tokenizer, engine, metrics=told) as (_, port):
        connection = send(port, {**BODY, "stream": stream, "n": 2})
        until(lambda: engine.steps >= 3)
        connection.close()
        steps = engine.steps
        until(lambda: not engine.sequences, 1)
        assert engine.steps - steps <= 3  # one that was under way, one that ends them
        until(lambda: told.requests)
    (finished,) = told.requests
    assert finished.finish_reasons == ("cancelled", "cancelled") and finished.completion_tokens >= 4


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_before_the_first_token_is_not_computed(tokenizer, stream):
    engine = ScriptedEngine("x" * 390, pace=0.02, max_batch=1, room=4096)
    with running(tokenizer, engine) as (_, port):
        first = send(port, {**BODY, "stream": True})
        until(lambda: engine.sequences)
        second = send(port, {**BODY, "stream": stream})
        until(lambda: len(engine.sequences) == 2)
        second.close()
        until(lambda: len(engine.sequences) == 1, 1)
        assert len(engine.requests) == 2 and engine.computed_tokens == 59
        first.close()


def test_two_hundred_hang_up_and_the_next_is_answered_at_once(tokenizer):
    engine = ScriptedEngine(lambda request: "x" * 390 if request.settings.max_new_tokens == 400 else "fine",
                            pace=0.002, room=4096)
    with running(tokenizer, engine, limits=Limits(max_queued=1000)) as (_, port):
        connections = [send(port, {**BODY, "stream": number % 2 == 0}) for number in range(200)]
        until(lambda: len(engine.sequences) == 200)
        for connection in connections:
            connection.close()
        begin = time.monotonic()
        status, text = read_all(send(port, {**BODY, "max_tokens": 10}))
        assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == "fine"
        assert time.monotonic() - begin < 2


# Reading slowly

def test_a_slow_reader_gets_all_in_few_events_and_holds_nobody_up(tokenizer):
    engine = ScriptedEngine("\u4e2d" * 3000, room=20_000)
    with running(tokenizer, engine) as (_, port):
        slow = send(port, {**BODY, "max_tokens": 9500, "stream": True, "return_token_ids": True}, buffer=2048)
        until(lambda: not engine.sequences, 20)  # the engine is done before anybody has read
        assert json.loads(read_all(send(port, {**BODY, "max_tokens": 3}))[1])["choices"][0]["finish_reason"] == "length"
        status, text = read_all(slow)
    events = events_of(text)
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    ids = [token for event in events for token in event["choices"][0]["token_ids"]]
    assert status == 200 and said == "\u4e2d" * 3000 and len(ids) == 9001
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_growth_that_nobody_has_read_becomes_one_event(tokenizer):
    engine = ScriptedEngine("Hello, world!")
    with Api(tokenizer, engine) as api:
        engine.hold.clear()

        answer = api.start(api.client.post("/v1/chat/completions", json={**BODY, "stream": True}))
        until(lambda: engine.sequences)
        api.run(asyncio.sleep(0))
        api.run(_busy_while_it_answers(engine))
        events = events_of(answer.result(10).text)
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""}, {"content": "Hello, world!"}, {}]


async def _busy_while_it_answers(engine):
    """The event loop has no time while the engine answers."""
    engine.hold.set()
    until(lambda: not engine.sequences)


# Waiting long

def test_comments_keep_a_silent_stream_open(tokenizer):
    engine = ScriptedEngine("Hello!")
    with running(tokenizer, engine, limits=Limits(ping_seconds=0.05)) as (_, port):
        engine.hold.clear()
        connection = send(port, {**BODY, "stream": True})
        time.sleep(0.4)
        engine.hold.set()
        _, text = read_all(connection)
    assert 3 <= text.count(": keep-alive\n\n") <= 8
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(text)) == "Hello!"


def test_a_stream_that_speaks_has_no_comments(tokenizer):
    engine = ScriptedEngine("x" * 40, pace=0.01)
    with running(tokenizer, engine, limits=Limits(ping_seconds=0.1)) as (_, port):
        _, text = read_all(send(port, {**BODY, "stream": True}))
    assert ": keep-alive" not in text


def test_who_waits_in_the_queue_is_told_how_many_are_ahead(tokenizer):
    engine = ScriptedEngine("x" * 20, pace=0.01, max_batch=2)
    with running(tokenizer, engine, limits=Limits(ping_seconds=0.05)) as (service, port):
        engine.hold.clear()
        connections = [send(port, {**BODY, "stream": True}) for _ in range(2)]
        until(lambda: len(service.runner.tickets) == 2)
        last = []
        for n, count in ((2, 4), (1, 5)):
            last.append(send(port, {**BODY, "stream": True, "n": n}))
            until(lambda count=count: len(service.runner.tickets) == count)
        time.sleep(0.2)
        engine.hold.set()
        assert all("queued" not in read_all(connection)[1] for connection in connections)
        first, second = (read_all(connection)[1] for connection in last)
    assert ": queued 1\n\n" in first and ": queued 3\n\n" in second
    assert ": queued" not in second[second.index('"content":"x'):]


# Ending early

@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_the_server_ends_says_why(tokenizer, n):
    engine, told = ScriptedEngine("x" * 390, pace=0.01, room=4096), Told()
    with running(tokenizer, engine, metrics=told) as (service, port):
        connection = send(port, {**BODY, "stream": True, "n": n})
        whole = send(port, BODY)
        until(lambda: engine.steps > 5)
        error = unavailable("the server is shutting down", code="shutting_down")
        service.runner.loop.call_soon_threadsafe(service.runner.abort, error)
        status, text = read_all(connection)
        assert read_all(whole)[0] == 503
        until(lambda: len(told.requests) == 2)
    assert status == 200 and events_of(text)[-1]["error"] == {
        "message": "the server is shutting down", "type": "unavailable_error", "param": None, "code": "shutting_down"}
    assert {finished.finish_reasons for finished in told.requests} == {("error",) * n, ("error",)}


# Telling

@pytest.mark.parametrize("stream", [False, True])
def test_what_has_come_of_a_request_is_told_once(tokenizer, stream):
    told = Told()
    with Api(tokenizer, ScriptedEngine("Hello!", pace=0.002, cached=7), metrics=told) as api:
        answer = api.chat(n=2, max_tokens=50, stream=stream)
    (finished,) = told.requests
    assert finished.id == (answer[0] if stream else answer)["id"]
    assert (finished.endpoint, finished.stream, finished.n, finished.max_tokens) == ("chat", stream, 2, 50)
    assert (finished.prompt_tokens, finished.cached_tokens, finished.completion_tokens) == (59, 7, 14)
    assert finished.finish_reasons == ("stop", "stop") and told.tokens == 14
    assert 0 < finished.seconds_to_first < finished.seconds and len(finished.tickets) == 2


def test_a_refused_request_is_not_told(tokenizer):
    told = Told()
    with Api(tokenizer, ScriptedEngine("x"), metrics=told) as api:
        api.refused(n=0)
    assert told.requests == []


# Many

def test_of_many_at_once_those_beyond_the_queue_are_refused_at_once(tokenizer):
    engine = ScriptedEngine("x", room=4096)
    with Api(tokenizer, engine, limits=Limits(max_queued=20)) as api:
        engine.hold.clear()
        waits = []

        async def one():
            response = await api.client.post("/v1/chat/completions", json=BODY)
            if response.status_code == 429:
                waits.append(response.headers["retry-after"])
                if len(waits) == 276:
                    engine.hold.set()
            return response.status_code

        async def many():
            return await asyncio.gather(*(one() for _ in range(300)))

        statuses = api.run(many())
    assert statuses.count(200) == 24 and statuses.count(429) == 276
    assert all(int(seconds) >= 1 for seconds in waits)


def test_of_thousands_of_requests_nothing_is_left(tokenizer):
    engine = ScriptedEngine(lambda request: "x" * (request.prompt[0] % 7), max_batch=16)
    with Api(tokenizer, engine, limits=Limits(max_queued=10_000), chat=False) as api:
        async def main():
            runner = api.service.runner
            tickets = [runner.submit([number % 256], api.service.settings) for number in range(1500)]
            for number, ticket in enumerate(tickets):
                if number % 3 == 0:
                    ticket.cancel()
            for ticket in tickets:
                while not ticket.is_over:
                    await ticket.changed()

        api.run(main())
        until(lambda: not engine.sequences)
        assert not api.service.runner.answers.active and len(engine.requests) == 1500
