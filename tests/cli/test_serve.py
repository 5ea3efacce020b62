"""The command: its options, those of Qwen's own server, who may come in, and a process from its start to its end."""
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from helpers import ROOT
from qwen_mindspore.cli.serve import keys_of, limits_of, main, name_of, parse_args, settle_original, users_of


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("QWEN_API_KEY", raising=False)


# Options

def test_by_default_only_this_machine_reaches_it():
    args = parse_args([])
    assert (args.host, args.port, args.cors_origins, args.log_prompts) == ("127.0.0.1", 8000, ["localhost"], False)
    assert args.config.endswith("predict_qwen_7b_chat.yaml") and keys_of(args) == [] and users_of(args) == []


def test_the_options_of_qwens_own_server_are_understood():
    args = parse_args(["-c", "Qwen/Qwen-7B-Chat", "--server-port", "80", "--server-name", "0.0.0.0", "--api-auth",
                       "me:secret:more", "--cpu-only", "--disable-gc"])
    settle_original(args)
    assert (args.model, args.port, args.host, args.device_target) == ("Qwen/Qwen-7B-Chat", 80, "0.0.0.0", "CPU")
    assert users_of(args) == ["me:secret:more"]
    assert parse_args(["--checkpoint-path", "x"]).checkpoint_path == "x"


@pytest.mark.parametrize("options, said", [
    (["-c", "a", "--model", "b"], "--checkpoint-path: it is the same as --model"),
    (["-c", "a", "--load_checkpoint", "b"], "--checkpoint-path: it is the same as --model"),
    (["--cpu-only", "--device_target", "Ascend"], "--cpu-only and --device_target Ascend: leave one of them"),
])
def test_options_that_say_two_things_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        settle_original(parse_args(options))


@pytest.mark.parametrize("options, said", [
    (["--port", "-1"], "argument --port/--server-port: expected a number from 0, found -1"),
    (["--drain_seconds", "soon"], "argument --drain_seconds: expected seconds, found soon"),
    (["--drain_seconds", "nan"], "expected seconds, found nan"), (["--max_n", "0"], "expected a positive number"),
    (["--thought", "aloud"], "invalid choice"), (["--model", "a", "--load_checkpoint", "b"], "not allowed with"),
])
def test_values_that_an_option_can_not_have_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        parse_args(options)
    assert said in capsys.readouterr().err


def test_limits_are_those_of_the_command_line_and_of_the_server_else():
    from qwen_mindspore.server.service import Limits
    assert limits_of(parse_args([])) == Limits()
    args = parse_args(["--max_queued", "0", "--max_queued_tokens", "9", "--max_body", "8", "--max_n", "7",
                       "--keep_alive_seconds", "2.5"])
    assert limits_of(args) == Limits(max_queued=0, max_queued_tokens=9, max_body=8, max_n=7, ping_seconds=2.5)
    assert limits_of(parse_args(["--keep_alive_seconds", "0"])).ping_seconds == 0  # off


def test_clients_call_the_model_by_its_name(tmp_path):
    assert name_of(parse_args(["--served_model_name", "qwen"]), "/x/y") == "qwen"
    assert name_of(parse_args(["--model", "Qwen/Qwen-7B-Chat"]), "/cache/1234") == "Qwen/Qwen-7B-Chat"
    assert name_of(parse_args(["--model", str(tmp_path)]), "/cache/1234") == tmp_path.name
    (tmp_path / "qwen.ckpt").touch()
    assert name_of(parse_args([]), tmp_path / "qwen.ckpt") == "qwen"
    assert name_of(parse_args([]), tmp_path) == tmp_path.name


# Keys

def test_keys_come_from_the_command_line_a_file_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf# of the team\r\nthree\r\n\r\n  four \r\n")
    monkeypatch.setenv("QWEN_API_KEY", "zero")
    args = parse_args(["--api_key", "one", "two", "--api_key", "more", "--api_key_file", str(tmp_path / "keys")])
    assert keys_of(args) == ["one", "two", "more", "zero", "three", "four"]


@pytest.mark.parametrize("content, said", [("", "expected a key on each line, found none"),
                                           ("# one\n\n", "expected a key on each line, found none"),
                                           ("a b\n", "an API key: expected printable ASCII without blanks"),
                                           ("schlüssel\n", "an API key: expected printable ASCII without blanks")])
def test_a_file_without_keys_does_not_open_the_server_to_everybody(content, said, tmp_path):
    (tmp_path / "keys").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error:
        keys_of(parse_args(["--api_key_file", str(tmp_path / "keys")]))
    assert "schlüssel" not in str(error.value)


@pytest.mark.parametrize("value", ["me", "me:", ":secret", ""])
def test_a_user_needs_a_password(value):
    with pytest.raises(ValueError, match="--api-auth: expected USER:PASSWORD"):
        users_of(parse_args(["--api-auth", value]))


# Beginning

@pytest.mark.parametrize("options, said", [
    (["--api_key_file", "missing"], "missing: No such file"),
    (["--ssl_certfile", "a.pem"], "--ssl_certfile and --ssl_keyfile go together"),
    (["--cors_origins", "a.com"], "--cors_origins: expected localhost, * or https://HOST[:PORT], found a.com"),
    (["--load_checkpoint", "missing.ckpt"], "missing.ckpt: no such file"),
    (["--top_p", "3"], "top_p: expected a number"),
])
def test_what_can_not_be_served_ends_in_one_clear_line_before_a_model_is_loaded(options, said, tiny_yaml,
                                                                               tiny_checkpoint, capfd):
    given = [*options, "--config", tiny_yaml("chatml"), "--port", "0"]
    given += [] if "--load_checkpoint" in options else ["--load_checkpoint", str(tiny_checkpoint)]
    assert main(given) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("serve: ") and said in err and len(err.splitlines()) == 1


def test_a_port_that_is_taken_is_told_in_one_line(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capfd.readouterr().err == (f"serve: --host 127.0.0.1 --port {port}: Address already in use: take another "
                                      "port, or 0 for any\n")


# A process

class Process:
    """scripts/serve.py, and the lines of its log."""

    def __init__(self, *options, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/serve.py"), *map(str, options)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, **environment})
        self.lines, self.said = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put("")

    def wait_for(self, message):
        """The line with a message."""
        while True:
            line = self.lines.get(timeout=180)
            self.said.append(line)
            assert line, "".join(self.said)
            if line.startswith("{") and json.loads(line)["message"] == message:
                return json.loads(line)

    def end(self, number=signal.SIGTERM):
        """(exit code, seconds)"""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - begin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.process
class TestProcess:
    @pytest.fixture(scope="class")
    def options(self, tiny_yaml, tiny_checkpoint):
        return ["--config", tiny_yaml("chatml"), "--load_checkpoint", tiny_checkpoint, "--port", "0"]

    def test_it_listens_loads_answers_and_drains(self, options):
        with Process(*options, "--served_model_name", "tiny", QWEN_API_KEY="key") as server:
            url = server.wait_for("listening")["url"]
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                early = client.get("/health")
                assert early.status_code in (200, 503)
                ready = server.wait_for("ready")
                assert ready["model"] == "tiny" and ready["max_batch"] == 16
                assert client.get("/ready").status_code == 200 and client.get("/v1/models").status_code == 401
                client.headers["Authorization"] = "Bearer key"
                body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}
                answer = client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "mine"})
                assert answer.status_code == 200, answer.text
                assert answer.headers["X-Request-Id"] == "mine"
                usage = answer.json()["usage"]
                line = server.wait_for("request")
                while line["path"] != "/v1/chat/completions":
                    line = server.wait_for("request")
                assert line["request_id"] == "mine" and line["completion_tokens"] == usage["completion_tokens"]
                assert "Hi" not in json.dumps(line)
                prompt = client.post("/apply-template", json={"messages": body["messages"]}).json()["prompt"]
                assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
            code, seconds = server.end()
            assert code == 0 and seconds < 20
            assert server.process.stdout.read() == ""

    def test_sigterm_lets_an_answer_end(self, options):
        with Process(*options) as server:
            url = server.wait_for("listening")["url"]
            server.wait_for("ready")
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "ignore_eos": True,
                    "max_tokens": 100, "stream_options": {"include_usage": True}}
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client, \
                    client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line.startswith("data:")]
            assert json.loads(rest[-2][5:])["usage"]["completion_tokens"] == 100 and rest[-1] == "data: [DONE]"
            assert server.process.wait(30) == 0

    def test_answers_that_are_cut_off_are_told_by_the_exit_code(self, options):
        with Process(*options, "--drain_seconds", "0", "--max_new_tokens", "200") as server:
            url = server.wait_for("listening")["url"]
            server.wait_for("ready")
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "ignore_eos": True}
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client, \
                    client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGINT)
                rest = [line for line in lines if line.startswith("data:")]
            assert "shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
            assert server.process.wait(30) == 130

    def test_a_model_that_can_not_be_loaded_ends_it_in_one_line(self, options, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
        (tmp_path / "qwen.tiktoken").write_bytes((options[3] / "qwen.tiktoken").read_bytes())
        with Process(*options[:3], tmp_path, "--port", "0") as server:
            assert server.process.wait(120) == 1
            server._read()
        said = [line for line in server.lines.queue if not line.startswith("{")]
        assert len([line for line in said if line.startswith("serve: ")]) == 1, said
        assert not any("Traceback" in line for line in said)
