"""The front of several replicas, without them: whom it lets in, what it sends on, how it tells that one is gone."""
import asyncio
import json
from types import SimpleNamespace

import pytest

from qwen_mindspore.server.errors import ApiError
from qwen_mindspore.server.metrics import FleetMetrics, Metrics
from qwen_mindspore.server.places import Call, Places
from qwen_mindspore.server.replicas import Fleet, Outlet, _reason, _sent
from qwen_mindspore.server.service import Limits


@pytest.fixture
def fleet():
    """Two replicas that are up, with two places each and one in the queue."""
    places = Places(2)
    places.up = {"a": 0, "b": 1}
    fleet = Fleet("qwen-test", replicas=3, limits=Limits(max_queued=1), metrics=FleetMetrics("qwen-test"))
    fleet.begin(SimpleNamespace(places=places, metrics=lambda: [], is_dead=False))
    return fleet


def refused(fleet, n=1):
    with pytest.raises(ApiError) as caught:
        fleet.admit(0, n)
    return caught.value.status, caught.value.code


# Who is let in

def test_health_says_how_many_replicas_are_up(fleet):
    fleet.runner.places.order(Call(b"a", 3))
    assert fleet.load() == {"running": 2, "waiting": 1, "replicas": 3, "replicas_up": 2}
    assert fleet.condition == "ready"


def test_while_none_is_up_it_loads(fleet):
    fleet.runner.places.up = {}
    assert fleet.condition == "loading" and refused(fleet) == (503, "loading")
    fleet.state = "draining"
    assert fleet.condition == "draining" and refused(fleet) == (503, "draining")


def test_before_any_was_up_too():
    fleet = Fleet("qwen-test", replicas=2)
    assert fleet.condition == "loading" and refused(fleet) == (503, "loading")


def test_where_all_queues_are_full_nobody_is_let_in(fleet):
    fleet.admit(0, 6)
    assert refused(fleet, 7) == (429, "queue_full")
    for _ in range(6):
        fleet.runner.places.order(Call(b"a"))
    assert refused(fleet) == (429, "queue_full")
    assert 'admission_rejections_total{model_name="qwen-test",status="429"} 2.0' in fleet.metrics.text().decode()


# Metrics

def test_metrics_of_replicas_are_told_apart_by_a_label(fleet):
    of_replica = Metrics("qwen-test")
    of_replica._count("generation_tokens", 5)
    fleet.runner.metrics = lambda: [(0, of_replica.samples()), (1, of_replica.samples())]
    lines = fleet.metrics.text().decode().splitlines()
    for number in (0, 1):
        assert f'qwen:generation_tokens_total{{model_name="qwen-test",replica="{number}"}} 5.0' in lines
    assert 'qwen:replicas_up{model_name="qwen-test"} 2.0' in lines
    assert lines.count("# TYPE qwen:generation_tokens_total counter") == 1


# On the way

def test_keys_stay_in_the_front():
    headers = [(b"authorization", b"Bearer k"), (b"x-api-key", b"k"), (b"content-type", b"application/json")]
    sent = _sent({"type": "http", "http_version": "1.1", "method": "POST", "path": "/qwen/v1/models",
                  "root_path": "/qwen", "query_string": b"", "state": {"request_id": "mine", "body": "secret"},
                  "app": object(), "headers": headers})
    assert sent["headers"] == [(b"content-type", b"application/json")] and sent["path"] == "/v1/models"
    assert sent["state"] == {"request_id": "mine"} and "app" not in sent


def told(*steps):
    """What reaches the client of what an Outlet is told, the last of it an error."""
    messages = []

    async def send(message):
        messages.append(message)

    async def go():
        outlet = Outlet(send)
        for step in steps:
            await getattr(outlet, step[0])(*step[1:])
        await outlet.fail(ApiError(503, "gone", code="replica_died"), {"type": "http"}, None)

    asyncio.run(go())
    return messages


def test_an_error_before_an_answer_has_a_status_of_its_own():
    start, body = told()
    assert start["status"] == 503 and json.loads(body["body"])["error"]["code"] == "replica_died"


def test_an_error_in_a_stream_is_an_event_and_its_end():
    *_, last = told(("start", 200, [(b"content-type", b"text/event-stream; charset=utf-8")]), ("body", b"data: 1\n\n"))
    event, done = last["body"].decode().strip().split("\n\n")
    assert json.loads(event[6:])["error"]["message"] == "gone" and done == "data: [DONE]" and not last["more_body"]


def test_half_a_body_is_cut_off():
    with pytest.raises(ApiError):
        told(("start", 200, [(b"content-type", b"application/json")]), ("body", b"{"))


@pytest.mark.parametrize("told, reason", [
    ("Traceback (most recent call last):\n  File \"a.py\", line 1, in b\nRuntimeError: Traceback:\n"
     "ValueError: weights.ckpt: no such tensor\n", "weights.ckpt: no such tensor"),
    ("ray.exceptions.RayTaskError(RuntimeError): ray::init\nOSError: a.yaml: no such file", "a.yaml: no such file"),
    ("KeyError: 'a'\nmore", "KeyError: 'a'"),
    ("The deployment failed\nto start 3 times in a row.", "The deployment failed to start 3 times in a row."),
])
def test_why_a_replica_could_not_be_built_is_one_line(told, reason):
    assert _reason(told) == reason
