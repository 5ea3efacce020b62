"""Keys, bodies, origins, ids and the log: what a request passes before a route sees it."""
import asyncio
import base64
import json
import re

import pytest

from qwen_mindspore.server import logs
from qwen_mindspore.server.errors import ApiError
from qwen_mindspore.server.middleware import Bodies, Keys, Requests, cors_options, parse_json, route_path


def call(app, method="GET", path="/v1/models", headers=(), body=(b"",), root_path=""):
    """(status, headers, body) of one request to an ASGI application; the body comes in pieces."""
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "state": {}, "query_string": b"",
             "headers": [(name.lower().encode(), value.encode()) for name, value in headers], "client": ("1.2.3.4", 5)}
    parts = [{"type": "http.request", "body": part, "more_body": number < len(body) - 1}
             for number, part in enumerate(body)] + [{"type": "http.disconnect"}]
    sent = []

    async def receive():
        await asyncio.sleep(0)
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if not sent:
        return None
    return (sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]},
            b"".join(message.get("body", b"") for message in sent[1:]))


async def echo(scope, receive, send):
    """Sends back what it gets."""
    body = (await receive())["body"] if scope["method"] == "POST" else b""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


# Keys

KEYED = Keys(echo, ["one", "two"], ["me:secret"], public=lambda path: path == "/health")


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("headers", [
    [("Authorization", "Bearer one")], [("Authorization", "bearer two")], [("X-Api-Key", "two")],
    [("Authorization", basic("me:secret"))], [("Authorization", "Bearer wrong"), ("X-Api-Key", "one")],
])
def test_who_has_a_key_may_ask(headers):
    assert call(KEYED, headers=headers)[0] == 200


@pytest.mark.parametrize("headers", [
    [], [("Authorization", "Bearer")], [("Authorization", "Bearer three")], [("Authorization", "one")],
    [("Authorization", "Bearer one two")], [("X-Api-Key", "")], [("X-Api-Key", "onetwo")],
    [("Authorization", basic("me:wrong"))], [("Authorization", "Basic !")], [("Authorization", basic("one"))],
    [("Authorization", "Bearer me:secret")], [("Authorization", "Bearer \u00e9")],
])
def test_who_has_none_is_refused_as_openai_refuses(headers):
    status, answered, body = call(KEYED, headers=headers)
    assert status == 401 and answered["www-authenticate"].startswith('Bearer, Basic realm="qwen"')
    error = json.loads(body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert error["message"].startswith("expected an API key (Authorization: Bearer KEY or Basic USER:PASSWORD), found ")


def test_what_is_public_and_what_a_browser_asks_first_needs_no_key():
    assert call(KEYED, path="/health")[0] == 200 and call(KEYED, method="OPTIONS")[0] == 200
    assert call(KEYED, path="/health/")[0] == 401, "nothing else is public by being like it"


def test_without_keys_everybody_may_ask():
    assert call(Keys(echo))[0] == 200


def test_every_key_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: compared.append(pair) or pair[0] == pair[1])
    assert call(Keys(echo, ["a", "b", "c"]), headers=[("Authorization", "Bearer a")])[0] == 200
    assert len(compared) == 6, "for each of the two headers, also behind the one that fits"
    assert {len(part) for pair in compared for part in pair} == {32}, "digests: a length tells nothing"


def test_a_proxys_path_makes_nothing_public():
    app = Keys(echo, ["one"], public=lambda path: path == "/health")
    assert call(app, path="/qwen/health", root_path="/qwen")[0] == 200
    assert call(app, path="/qwen/v1/models", root_path="/qwen")[0] == 401
    assert route_path({"path": "/qwenty", "root_path": "/qwen"}) == "/qwenty"


# Bodies

LIMITED = Bodies(echo, {"/v1/chat/completions"}, max_body=100)
JSON = [("Content-Type", "application/json; charset=utf-8")]


def post(*body, app=LIMITED, headers=JSON, path="/v1/chat/completions"):
    return call(app, "POST", path, headers, body)


def message_of(answer):
    return json.loads(answer[2])["error"]["message"]


def test_a_body_reaches_the_route_whole():
    assert post(b'{"a": ', b"1", b"}") == (200, {}, b'{"a": 1}')


@pytest.mark.parametrize("body, said", [
    (b"", "expected a JSON object, found nothing"),
    (b" ", "expected a JSON object, found nothing"),
    (b"{", "not JSON: Expecting property name enclosed in double quotes"),
    (b"[1]", "expected a JSON object, found a list"),
    (b'"a"', "expected a JSON object, found a string"),
    (b"null", "expected a JSON object, found null"),
    (b"3", "expected a JSON object, found a number"),
    (b'{"a": NaN}', "NaN is no JSON number"),
    (b'{"a": -Infinity}', "-Infinity is no JSON number"),
    (b'{"a": 1e999}', "1e999 is too large a number"),
    (b'{"a": 1, "b": 2, "a": 1}', '"a" is there twice in one object'),
    (b'{"a": {"b\\nc": 1, "b\\nc": 2}}', '"b\\nc" is there twice in one object'),
    (b'{"a": "\xff"}', "not UTF-8 (byte 7)"),
    (b'{"a": "\\ud83d"}', "half a surrogate pair"),
    (b'{"a\\udc00": 1}', "half a surrogate pair"),
    (b'{"a": "\0"}', "not a text (byte 7 is 0)"),
])
def test_what_is_no_json_object_is_refused(body, said):
    answer = post(body)
    assert answer[0] == 400 and message_of(answer).startswith(f"the body: {said}")
    assert json.loads(answer[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b'{"a": "\\ud83d\\ude00"}', '{"a": "你\u2028"}'.encode(), b'\xef\xbb\xbf{"a": 1}'])
def test_what_is_text_is_let_through(body):
    assert post(body)[0] == 200


@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"a":' * 50_000, b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}"])
def test_lists_in_lists_have_an_end(body):
    with pytest.raises(ValueError, match="lists and objects are nested deeper than 64|not JSON"):
        parse_json(body)


def test_digits_have_an_end_and_many_names_take_no_time():
    with pytest.raises(ValueError, match=r"1{40}\.\.\. is too large a number"):
        parse_json(b'{"a": ' + b"1" * 5000 + b"}")
    many = b",".join(b'"%d":1' % number for number in range(100_000))
    with pytest.raises(ValueError, match='"99999" is there twice'):
        parse_json(b"{" + many + b',"99999":1}')


@pytest.mark.parametrize("headers, body", [
    ([*JSON, ("Content-Length", "101")], (b"{}",)), (JSON, (b'{"a": "', b"x" * 60, b"x" * 60, b'"}')),
])
def test_what_is_too_long_is_refused_before_it_is_read_to_the_end(headers, body):
    status, answered, said = post(*body, headers=headers)
    assert status == 413 and answered["connection"] == "close"
    error = json.loads(said)["error"]
    assert error["message"].startswith("the body: expected at most 100 bytes, found ")
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_is_not_said_to_be_json_is_refused(kind):
    answer = post(b"{}", headers=[("Content-Type", kind)] if kind else [])
    assert answer[0] == 415 and message_of(answer) == f"Content-Type: expected application/json, found {kind or 'none'}"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP"])
def test_what_is_compressed_is_refused_by_the_headers_name(encoding):
    status, _, said = post(b"\x1f\x8b", headers=[*JSON, ("Content-Encoding", encoding)])
    error = json.loads(said)["error"]
    assert (status, error["param"]) == (415, "Content-Encoding")
    assert error["message"] == f"Content-Encoding: expected none, found {encoding.lower()}: send the body as it is"
    assert post(b"{}", headers=[*JSON, ("Content-Encoding", "identity")])[0] == 200


def test_where_nobody_is_let_in_nothing_is_read():
    def gate(path):
        raise ApiError(429, f"{path}: full", headers={"Retry-After": "3"})

    async def unread(scope, receive, send):
        async def receive():
            raise AssertionError("read")

        await Bodies(echo, {"/"}, gate=gate)(scope, receive, send)

    status, headers, said = call(unread, "POST", "/", JSON)
    assert (status, headers["retry-after"]) == (429, "3") and b"/: full" in said


def test_a_body_that_does_not_arrive_is_not_waited_for():
    async def never(scope, receive, send):
        await Bodies(echo, {"/"}, seconds=0.01)(scope, asyncio.Event().wait, send)

    answer = call(never, "POST", "/", JSON)
    assert answer[0] == 408 and message_of(answer) == "the body did not arrive within 0.01 s"


def test_a_client_that_is_gone_gets_no_answer():
    async def gone(scope, receive, send):
        async def receive():
            return {"type": "http.disconnect"}

        await LIMITED(scope, receive, send)

    assert call(gone, "POST", "/v1/chat/completions", JSON) is None


def test_where_no_body_is_asked_for_none_is_looked_at():
    assert post(b"not JSON", path="/elsewhere") == (200, {}, b"not JSON")


# Ids, headers and the log

@pytest.fixture
def lines(capsys):
    """A function: the lines of the log so far."""
    logs.set_up_logs()
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_answer_has_the_requests_id_and_the_headers_of_all(lines):
    app = Requests(echo, headers=[(b"content-security-policy", b"default-src 'self'")])
    _, headers, _ = call(app, headers=[("X-Request-Id", "my-id.1")])
    assert headers["x-request-id"] == "my-id.1" and headers["content-security-policy"] == "default-src 'self'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    line, = lines()
    assert (line["message"], line["request_id"], line["status"], line["path"]) == ("request", "my-id.1", 200,
                                                                                  "/v1/models")
    assert line["method"] == "GET" and line["client"] == "1.2.3.4" and line["total_ms"] >= 0


@pytest.mark.parametrize("given", ["a b", "a\r\nSet-Cookie: x", "", "x" * 129, "é", "<script>"])
def test_an_id_that_is_none_is_replaced(given):
    _, headers, _ = call(Requests(echo), headers=[("X-Request-Id", given)])
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


def test_nobody_forges_a_line_of_the_log(lines):
    call(Requests(echo), path='/x\n{"message": "forged"}\u2028')
    line, = lines()
    assert line["path"] == '/x\n{"message": "forged"}\u2028'


def test_what_a_route_notes_is_in_the_line_and_what_is_asked_is_not(lines):
    async def noting(scope, receive, send):
        logs.note(prompt_tokens=3, finish_reason="stop")
        await echo(scope, receive, send)

    app = Requests(Bodies(noting, {"/"}))
    call(app, "POST", "/", JSON, [b'{"prompt": "secret"}'])
    call(app, "POST", "/", [*JSON, ("Authorization", "Bearer secret")], [b'{"prompt": "secret"}'])
    said = lines()
    assert [line["prompt_tokens"] for line in said] == [3, 3] and "secret" not in json.dumps(said)


def test_what_is_asked_is_in_the_line_where_that_is_wanted(lines):
    call(Requests(Bodies(echo, {"/"}), prompts=True), "POST", "/", JSON, ['{"prompt": "你"}'.encode()])
    assert lines()[0]["body"] == '{"prompt": "你"}'


def test_what_is_asked_every_few_seconds_has_no_lines(lines):
    for path in ("/health", "/ready", "/metrics"):
        call(Requests(echo), path=path)
    assert lines() == []


def test_where_the_server_fails_the_client_is_told_so_and_the_log_why(lines):
    async def failing(scope, receive, send):
        raise KeyError("secret detail")

    status, headers, body = call(Requests(failing), headers=[("X-Request-Id", "7")])
    assert status == 500 and headers["x-request-id"] == "7"
    assert json.loads(body)["error"] == {"message": "the server failed; its log tells more of request 7",
                                         "type": "server_error", "param": None, "code": None}
    failure, line = lines()
    assert "KeyError: 'secret detail'" in failure["traceback"] and failure["level"] == "error"
    assert line["status"] == 500


def test_requests_are_counted_while_they_last_and_when_they_end():
    ended, counts = [], []

    async def watched(scope, receive, send):
        counts.append(app.activity.count)
        await echo(scope, receive, send)

    app = Requests(watched, on_end=lambda *what: ended.append(what))
    call(app)
    assert counts == [1] and app.activity.count == 0 and ended == [("other", "GET", 200)]


# Origins

@pytest.mark.parametrize("origin, is_let_in", [
    ("http://localhost", True), ("http://localhost:3000", True), ("https://localhost:8443", True),
    ("http://127.0.0.1:5173", True), ("http://[::1]:80", True), ("http://app.localhost:80", True),
    ("http://localhost.evil.com", False), ("http://evil.com", False), ("http://localhost:80.evil.com", False),
    ("http://evil.com/localhost", False), ("http://127.0.0.1.evil.com", False), ("null", False),
    ("http://notlocalhost", False), ("http://localhost@evil.com", False),
])
def test_localhost_is_any_port_of_it_and_nothing_that_looks_like_it(origin, is_let_in):
    from starlette.middleware.cors import CORSMiddleware

    app = CORSMiddleware(echo, **cors_options(["localhost"]))
    _, headers, _ = call(app, headers=[("Origin", origin)])
    assert headers.get("access-control-allow-origin") == (origin if is_let_in else None)
    asked = [("Origin", origin), ("Access-Control-Request-Method", "POST"),
             ("Access-Control-Request-Headers", "authorization,x-stainless-os")]
    status, headers, _ = call(app, "OPTIONS", headers=asked)
    assert ("access-control-allow-origin" in headers) == is_let_in
    assert status == (200 if is_let_in else 400) and "access-control-allow-credentials" not in headers


def test_origins_may_be_named():
    options = cors_options(["https://Chat.example.com", "*"])
    assert options["allow_origins"] == ["https://chat.example.com", "*"] and options["allow_origin_regex"] is None
    with pytest.raises(ValueError, match=r"--cors_origins: expected localhost, \* or https://HOST\[:PORT\], found a/b"):
        cors_options(["a/b"])
