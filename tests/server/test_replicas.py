"""Several engines behind one address: who answers, and what reaches the client. Over Ray, on this machine."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from helpers import ROOT
from helpers.replicas import build_scripted, replicated
from helpers.serving import until

pytest.importorskip("grpc", reason="ray[serve] is not installed")  # not Ray itself: see common.cluster
pytestmark = pytest.mark.process
PACE = 0.02


@pytest.fixture(scope="module")
def server(tiny_hf):
    """Two replicas that hold two answers each at once, and let none wait."""
    patch = pytest.MonkeyPatch()
    # Ray's processes import these helpers, too.
    patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT / "research/qwen")]))
    arguments = (str(tiny_hf), {"pace": PACE, "max_batch": 2}, {"max_queued": 0, "ping_seconds": PACE / 2})
    with replicated(build_scripted, arguments) as server:
        assert server.get("/ready").status_code == 503 and server.post("/v1/completions", {}).status_code == 503
        until(lambda: server.server.failure or (
            server.service.condition == "ready" and server.service.load()["replicas_up"] == 2), 240)
        assert server.server.failure is None
        yield server
    patch.undo()


def conversation(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def who(server, *texts):
    """(number, process) of the replica that answers a conversation."""
    answer = server.post("/v1/chat/completions", {"messages": conversation(*texts)}).json()
    number, process, _ = answer["choices"][0]["message"]["content"].split(" ", 2)
    return int(number), int(process)


class Stream:
    """An answer while it grows: who begins it, and its lines."""

    def __init__(self, server, question, tokens=1000):
        self.context = server.client.stream("POST", "/v1/chat/completions", json={
            "messages": conversation(question), "stream": True, "max_tokens": tokens})
        self.response = self.context.__enter__()
        self.lines, self.number, self.process = self.response.iter_lines(), None, None

    def begin(self):
        """Read who answers."""
        text = ""
        while not (found := re.match(r"(\d+) (\d+) ", text)):
            line = next(self.lines)
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        self.number, self.process = map(int, found.groups())
        return self

    def rest(self):
        """The events that are left."""
        return [line[6:] for line in self.lines if line.startswith("data:")]

    def close(self):
        """Hang up."""
        self.context.__exit__(None, None, None)


@contextlib.contextmanager
def streams(server, *questions):
    found = []
    try:
        for question in questions:
            found.append(Stream(server, question).begin())
        yield found
    finally:
        for stream in found:
            stream.close()
        until(lambda: running(server) == 0)


def running(server):
    return sum(values(server, "num_requests_running"))


def values(server, name):
    """Of each replica, by number."""
    found = re.findall(rf'^qwen:{name}{{.*replica="(\d+)".*}} (\S+)$', server.get("/metrics").text, re.MULTILINE)
    return [float(value) for _, value in sorted(found)]


def test_a_conversation_stays_with_one_replica_and_all_have_some(server):
    first = {}
    for question in "abcdefgh":
        first[question] = who(server, question)
    assert {number for number, _ in first.values()} == {0, 1}
    for question, replica in first.items():
        assert who(server, question, "1", "More?") == replica
        assert who(server, question, "1", "More?", "2", "Another?") == replica


def test_so_do_texts_that_begin_alike(server):
    def answers(prompt):
        answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 15}).json()
        return answer["choices"][0]["text"].split()[1]

    begin = 2000 * "a"
    assert answers(begin + "b") == answers(begin + "c" * 500)


def test_what_the_model_is_asked_for_comes_from_a_replica(server):
    card, = server.get("/v1/models").json()["data"]
    assert card["id"] == "qwen-test" and card["max_model_len"] == 4000
    assert server.get("/v1/models/qwen-test").json() == card
    assert server.get("/v1/models/other").status_code == 404
    assert server.post("/tokenize", {"prompt": "Hi"}).json()["tokens"] == [72, 105]
    refused = server.post("/v1/chat/completions", {"messages": []})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"
    assert server.post("/v1/chat/completions", b"{").status_code == 400
    assert server.get("/v1/chat/completions").status_code == 405
    assert "/v1/chat/completions" in server.get("/openapi.json").json()["paths"]
    response = server.post("/tokenize", {"prompt": "Hi"}, headers={"X-Request-Id": "mine"})
    assert response.headers["X-Request-Id"] == "mine"


def test_a_stream_comes_bit_by_bit_with_comments_between(server):
    begin, events, comments = time.monotonic(), [], 0
    with server.client.stream("POST", "/v1/chat/completions", json={
            "messages": conversation("a"), "stream": True, "max_tokens": 30}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        for line in response.iter_lines():
            comments += line.startswith(":")
            if line.startswith("data:"):
                events.append((time.monotonic() - begin, line[6:]))
    assert events[-1][1] == "[DONE]" and comments
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for _, event in events[:-1])
    assert len(text) == 30
    assert events[-1][0] - events[0][0] > 10 * PACE, "the first event comes long before the last one"


def test_who_is_full_hands_over_and_where_all_are_the_client_is_told(server):
    with streams(server, "a", "a", "a", "a") as (first, second, third, fourth):
        assert first.number == second.number != third.number == fourth.number
        health = server.get("/health").json()
        assert health["running"] == 4 and health["waiting"] == 0
        refused = server.post("/v1/chat/completions", {"messages": conversation("a")})
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert who(server, "a")[0] == first.number, "and comes home"


def test_who_hangs_up_ends_the_answer_in_the_replica(server):
    with streams(server, "a", "b") as (first, _):
        until(lambda: running(server) == 2)
        first.close()
        until(lambda: running(server) == 1)
    with pytest.raises(httpx.ReadTimeout):
        server.post("/v1/chat/completions", {"messages": conversation("a"), "max_tokens": 1000}, timeout=0.5)
    until(lambda: running(server) == 0)


def test_metrics_have_each_replica_and_sum_up_to_the_answers(server):
    before = values(server, "generation_tokens_total")
    usages = [server.post("/v1/chat/completions", {"messages": conversation(question)}).json()["usage"]
              for question in "abcdef"]
    after = values(server, "generation_tokens_total")
    grown = [late - early for early, late in zip(before, after)]
    assert len(grown) == 2 and all(grown) and sum(grown) == sum(usage["completion_tokens"] for usage in usages)
    text = server.get("/metrics").text
    assert 'qwen:replicas_up{model_name="qwen-test"} 2.0' in text
    assert 'handler="/v1/chat/completions",method="POST"' in text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_a_replica_that_dies_ends_its_streams_with_an_error_and_is_replaced(server):
    stream = Stream(server, "a").begin()
    os.kill(stream.process, signal.SIGKILL)
    *_, error, done = stream.rest()
    stream.close()
    assert json.loads(error)["error"]["code"] == "replica_died" and done == "[DONE]"
    until(lambda: server.get("/health").json().get("replicas_up") == 1)
    number, process = who(server, "a")
    assert number != stream.number and process != stream.process, "the other one answers meanwhile"
    until(lambda: server.get("/health").json().get("replicas_up") == 2, 120)
    number, process = who(server, "a")
    assert number == stream.number and process != stream.process, "and the new one has what the old one had"


# The command, with a model

@pytest.fixture(scope="module")
def command(server, tiny_yaml, tiny_checkpoint):
    """The command line of a server of the golden model on the same cluster."""
    import ray
    config = tiny_yaml("chatml", use_dynamic_ntk=False, use_logn_attn=False)  # those tie keys to a prompt's length
    return [sys.executable, str(ROOT / "scripts/serve.py"), "--config", config, "--load_checkpoint",
            str(tiny_checkpoint), "--port", "0", "--replicas", "2", "--ray", ray.get_runtime_context().gcs_address,
            "--ray_resources", "CPU=0.5", "--max_batch", "2"]


def test_two_models_answer_as_one_and_their_caches_serve_then_sigterm_lets_answers_end(command):
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        log = map(json.loads, filter(lambda line: line.startswith("{"), process.stderr))
        url = next(line["url"] for line in log if line["message"] == "listening")
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            until(lambda: process.poll() is None and client.get("/ready").json().get("replicas_up") == 2, 240)
            replicas = talk(client, log)
            assert set(replicas) == {0, 1}
            with client.stream("POST", "/v1/chat/completions", json={
                    "messages": conversation("Hi"), "stream": True, "max_tokens": 100, "ignore_eos": True}) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def talk(client, log):
    """Hold conversations; the replicas that had them."""
    replicas = []
    for question in "abcdef":
        messages = conversation(question)
        answers = [answer_of(client, log, messages) for _ in range(2)]
        assert answers[0][:2] == answers[1][:2], "the same text from the same replica"
        text, replica, _ = answers[0]
        _, again, cached = answer_of(client, log, [*messages, {"role": "assistant", "content": text},
                                                   {"role": "user", "content": "More?"}])
        assert again == replica and cached > 0
        replicas.append(replica)
    return replicas


def answer_of(client, log, messages):
    """(text, number of the replica, tokens that were in its cache)."""
    response = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0})
    answer, id = response.json(), response.headers["X-Request-Id"]
    line = next(line for line in log if line.get("request_id") == id)
    usage = answer["usage"]
    assert line["completion_tokens"] == usage["completion_tokens"], "the front's log tells what the replica counts"
    return (answer["choices"][0]["message"]["content"], line["replica"],
            usage["prompt_tokens_details"]["cached_tokens"])
