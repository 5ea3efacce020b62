"""A server from its first moment to its last: loading, draining, signals, what is left. Over real sockets."""
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import httpx
import pytest

from helpers.scripted import Fault, ScriptedEngine
from helpers.serving import serving, until
from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.address import bind, check_certificate, is_loopback, url_of
from qwen_mindspore.server.lifecycle import warm_up
from qwen_mindspore.text.tokenizer import QwenTokenizer

HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


def stream(server, **fields):
    """A stream that has begun: (context, lines)."""
    context = server.client.stream("POST", "/v1/chat/completions", json={**HI, "stream": True, **fields})
    response = context.__enter__()
    return context, response.iter_lines()


def rest(lines):
    return [line for line in lines if line.startswith("data:")]


# Loading

def test_it_listens_at_once_and_says_that_it_loads(tokenizer):
    may_load, engine = threading.Event(), ScriptedEngine("Hello!")

    def load():
        may_load.wait(10)
        return Answers(engine, tokenizer)

    with serving(tokenizer, engine, load, is_ready=False) as server:
        for path in ("/health", "/ready", "/v1/models"):
            response = server.get(path)
            assert response.status_code == 503 and response.headers["Retry-After"] == "5"
            assert response.json()["error"]["code"] == "loading"
        assert server.post("/v1/chat/completions", HI).status_code == 503
        may_load.set()
        until(lambda: server.get("/ready").status_code == 200)
        answer = server.post("/v1/chat/completions", HI).json()
        assert answer["choices"][0]["message"]["content"] == "Hello!"


def test_what_can_not_be_loaded_ends_the_server(tokenizer):
    def load():
        raise ValueError("weights.ckpt: no such tensor")

    with serving(tokenizer, ScriptedEngine(), load, is_ready=False) as server:
        server.thread.join(5)
        assert not server.thread.is_alive() and str(server.server.failure) == "weights.ckpt: no such tensor"


def test_a_signal_while_it_loads_ends_it_at_once(tokenizer):
    may_load, engine = threading.Event(), ScriptedEngine("Hello!")
    with serving(tokenizer, engine, lambda: may_load.wait(10) and Answers(engine, tokenizer), False) as server:
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(5)
        assert not server.thread.is_alive() and server.server.failure is None and not server.server.was_cut
        may_load.set()


def test_warming_up_answers_a_prompt_alone_and_two_together(tokenizer):
    engine = ScriptedEngine("Hello!")
    warm_up(Answers(engine, tokenizer), GenerationSettings())
    assert len(engine.requests) == 3 and not engine.sequences
    with pytest.raises(Fault):
        warm_up(Answers(ScriptedEngine([Fault("no memory")]), tokenizer), GenerationSettings())


# The end

def test_sigterm_lets_what_is_begun_end_and_nothing_else_in(tokenizer):
    engine = ScriptedEngine("Hello, world!", pace=0.02)
    with serving(tokenizer, engine) as server:
        context, lines = stream(server)
        next(lines)
        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.service.state == "draining")
        with httpx.Client(base_url=server.url, trust_env=False) as other:
            refused = other.post("/v1/chat/completions", json=HI)
            assert refused.status_code == 503 and refused.headers["Retry-After"]
            assert refused.json()["error"]["code"] == "draining"
            assert other.get("/health").status_code == 200 and other.get("/ready").status_code == 503
        events = rest(lines)
        context.__exit__(None, None, None)
        text = "".join(choice["delta"].get("content") or "" for event in events[:-1]
                       for choice in json.loads(event[5:])["choices"])
        assert text == "Hello, world!" and events[-1] == "data: [DONE]"
        server.thread.join(5)
        assert not server.thread.is_alive() and not server.server.was_cut and not engine.sequences


@pytest.mark.parametrize("signals, drain_seconds", [(2, 60), (1, 0.2)])
def test_a_second_signal_or_the_time_cuts_answers_off_and_says_so_in_the_stream(tokenizer, signals, drain_seconds):
    engine = ScriptedEngine("x" * 10_000, pace=0.02, room=20_000)
    with serving(tokenizer, engine, drain_seconds=drain_seconds) as server:
        context, lines = stream(server, max_tokens=10_000)
        next(lines)
        for _ in range(signals):
            server.server.handle_exit(signal.SIGTERM, None)
        *_, error, done = rest(lines)
        context.__exit__(None, None, None)
        assert "shutting down" in json.loads(error[5:])["error"]["message"] and done == "data: [DONE]"
        server.thread.join(5)
        assert not server.thread.is_alive() and server.server.was_cut
        until(lambda: not engine.sequences)


def test_who_waits_for_a_whole_answer_that_is_cut_off_gets_an_error(tokenizer):
    engine, answers = ScriptedEngine("x" * 10_000, pace=0.02, room=20_000), []
    with serving(tokenizer, engine, drain_seconds=0.1) as server:
        asking = threading.Thread(target=lambda: answers.append(server.post("/v1/chat/completions",
                                                                            {**HI, "max_tokens": 10_000})))
        asking.start()
        until(lambda: engine.sequences)
        server.server.handle_exit(signal.SIGTERM, None)
        asking.join(10)
        assert answers[0].status_code >= 500 and "shutting down" in answers[0].json()["error"]["message"]


def test_idle_connections_do_not_keep_it(tokenizer):
    with serving(tokenizer, ScriptedEngine("Hello!")) as server:
        assert server.get("/health").status_code == 200  # and the connection is kept
        server.server.handle_exit(signal.SIGINT, None)
        server.thread.join(3)
        assert not server.thread.is_alive()


# Under load

def test_a_full_queue_is_told_with_when_to_come_again(tokenizer):
    from qwen_mindspore.server.service import Limits
    engine = ScriptedEngine("Hello!", max_batch=1)
    engine.hold.clear()
    with serving(tokenizer, engine, service_options={"limits": Limits(max_queued=1)}) as server:
        waiting = [stream(server) for _ in range(2)]
        refused = server.post("/v1/chat/completions", HI)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        engine.hold.set()
        for context, lines in waiting:
            assert rest(lines)[-1] == "data: [DONE]"
            context.__exit__(None, None, None)
        assert 'qwen:admission_rejections_total{model_name="qwen-test",status="429"} 1.0' in server.get("/metrics").text


def test_metrics_equal_the_sums_of_the_answers(tokenizer):
    engine = ScriptedEngine(lambda request: "ab" * (len(request.prompt) % 7 + 1), cached=5)
    with serving(tokenizer, engine) as server:
        usages, reasons = [], []
        for number in range(12):
            body = {"messages": [{"role": "user", "content": "x" * number}], "max_tokens": 3 + number % 5,
                    "n": 1 + number % 2}
            if number % 3 == 0:
                context, lines = stream(server, **body, stream_options={"include_usage": True})
                chunks = [json.loads(line[5:]) for line in rest(lines)[:-1]]
                context.__exit__(None, None, None)
                usages.append(chunks[-1]["usage"])
                reasons += [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]
                            if choice["finish_reason"]]
            else:
                answer = server.post("/v1/chat/completions", body).json()
                usages.append(answer["usage"])
                reasons += [choice["finish_reason"] for choice in answer["choices"]]
        text = server.get("/metrics").text

    def value(name, labels=""):
        begin = f'qwen:{name}{{{labels}model_name="qwen-test"}}'
        line, = (line for line in text.splitlines() if line.startswith(begin))
        return float(line.rpartition(" ")[2])

    assert value("prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)
    assert value("generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages)
    assert value("prompt_tokens_cached_total") == sum(
        usage["prompt_tokens_details"]["cached_tokens"] for usage in usages) > 0
    for reason in ("stop", "length"):
        assert value("request_success_total", f'finished_reason="{reason}",') == reasons.count(reason) > 0
    assert value("e2e_request_latency_seconds_count") == value("time_to_first_token_seconds_count") == 12
    assert value("inter_token_latency_seconds_count") == sum(
        usage["completion_tokens"] for usage in usages) - len(reasons)


# Addresses

def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"--host 127.0.0.1 --port {port}: Address already in use: take another port"):
            bind("127.0.0.1", port)


def test_any_free_port_may_be_asked_for_and_its_number_is_known():
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert listener.getsockname()[1] > 0 and url_of(listener, True).startswith("https://")


@pytest.mark.parametrize("host, port, said", [
    ("no.such.host.invalid", 0, "--host no.such.host.invalid: no such address"),
    ("127.0.0.1", 70000, "--port 70000: expected 0 to 65535"),
    ("192.0.2.1", 0, "--host 192.0.2.1 --port 0: Cannot assign"),
])
def test_an_address_that_is_none_is_told_by_its_option(host, port, said):
    with pytest.raises(OSError, match=said):
        bind(host, port)


@pytest.mark.parametrize("host, is_one", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.com", False),
])
def test_loopback_is_what_this_machine_alone_reaches(host, is_one):
    assert is_loopback(host) == is_one


def test_a_certificate_and_its_key_go_together(tmp_path):
    with pytest.raises(ValueError, match="--ssl_certfile and --ssl_keyfile go together"):
        check_certificate("a.pem", None)
    with pytest.raises(OSError):
        check_certificate(str(tmp_path / "a.pem"), str(tmp_path / "b.pem"))
    (tmp_path / "a.pem").write_text("nothing")
    with pytest.raises(ValueError, match="a.pem: no certificate that goes with --ssl_keyfile"):
        check_certificate(str(tmp_path / "a.pem"), str(tmp_path / "a.pem"))


@pytest.mark.process
def test_tls_by_a_certificate_and_its_key(tokenizer, tmp_path):
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert,
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    check_certificate(str(cert), str(key))
    tls = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    with serving(tokenizer, ScriptedEngine("Hello!"), uvicorn_options=tls) as server:
        url = server.url.replace("http:", "https:")
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert)), trust_env=False) as client:
            assert client.get(f"{url}/health").json()["status"] == "ok"
        with pytest.raises(httpx.HTTPError):
            server.get("/health")


def test_an_engine_that_dies_is_told_by_health_and_in_the_log(tokenizer, capsys):
    from qwen_mindspore.server.logs import set_up_logs
    set_up_logs()
    engine = ScriptedEngine("Hello!")
    with serving(tokenizer, engine) as server:
        engine.broken = SystemExit("out of the window")
        assert server.post("/v1/chat/completions", HI).status_code == 503
        until(lambda: server.get("/health").status_code == 503)
        assert server.get("/ready").json()["error"]["code"] == "dead"
        assert server.post("/v1/chat/completions", HI).status_code == 503
        until(lambda: server.server.is_told)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any(line["level"] == "critical" for line in lines)
    assert "out of the window" in next(line["error"] for line in lines if "error" in line)


def test_two_hundred_clients_hang_up_and_the_next_is_answered_at_once(tokenizer, capsys):
    from qwen_mindspore.server.logs import set_up_logs
    set_up_logs()
    engine = ScriptedEngine("x" * 10_000, pace=0.005, room=20_000)
    with serving(tokenizer, engine) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({**HI, "stream": True, "max_tokens": 10_000}).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        connections = [socket.create_connection((host, int(port))) for _ in range(200)]
        for connection in connections:
            connection.sendall(head + body)
        for connection in connections:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        for connection in connections:
            connection.close()
        begin = time.monotonic()
        assert server.post("/v1/chat/completions", {**HI, "max_tokens": 3}).status_code == 200
        assert time.monotonic() - begin < 3
        until(lambda: not engine.sequences and not server.server.activity.count)
        assert 'finished_reason="cancelled",model_name="qwen-test"} 200.0' in server.get("/metrics").text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert sum(line.get("client_gone", False) for line in lines) == 200
