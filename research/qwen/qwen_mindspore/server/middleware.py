"""
What every request passes on its way in and out, as plain ASGI: from the outside in

    Requests   its id, the headers of every answer, a line in the log, 500 in OpenAI's shape where we fail
    (CORS      Starlette's own, see `cors_options`)
    Keys       who may ask
    Bodies     JSON that is JSON, and not too long

None of them stands between a stream and its client: what is sent is passed on at once, and `receive` tells of a client
that is gone.
"""
import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import time
import uuid

from qwen_mindspore.common.files import decode_text
from qwen_mindspore.common.json_text import check_depth, object_of, too_deep
from qwen_mindspore.server.errors import ApiError, error_response, invalid
from qwen_mindspore.server.logs import LOG, NOTES, log

__all__ = ["LOCALHOST", "Activity", "Bodies", "Keys", "Requests", "cors_options", "parse_json", "route_path"]

CLOSE = {"Connection": "close"}  # what else comes is not read
DEEPEST = 64  # lists and objects within each other: a schema has a dozen
LONGEST_INT = 400  # digits
BODY_SECONDS = 60.0  # for a body to arrive
LOCALHOST = r"https?://(localhost|[a-z0-9-]+\.localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?"
QUIET = ("/health", "/ready", "/metrics")  # asked every few seconds: no lines of them
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"cross-origin-resource-policy", b"same-site"))


def route_path(scope):
    """str, the path that routes match: without the `root_path` under which a proxy shows the server."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root):] if root and path.startswith(f"{root}/") else path


def _header(scope, name):
    return next((value for key, value in scope["headers"] if key == name), b"")


class Requests:
    """
    Gives each request an id, which is in its answer's X-Request-Id and in the log; adds the headers of every answer;
    answers 500 where what is inside fails; writes a line of the log when an answer has ended.

    What is inside may add to that line, see `logs.note`.

    Args:
        app: What is inside.
        headers (Sequence[tuple[bytes, bytes]]): More headers of every answer.
        prompts (bool): The line has the request's body, too.
        on_end (function): Called with (route, method, status) when an answer has ended.
        activity (Activity): Is told of every request.
        root_path (str): The path under which a proxy shows the server, whether it strips it or not.
    """

    def __init__(self, app, headers=(), prompts=False, on_end=None, activity=None, root_path=""):
        self.app, self.prompts, self.on_end, self.root_path = app, prompts, on_end, root_path
        self.headers = [*HEADERS, *headers]
        self.activity = activity or Activity()

    async def __call__(self, scope, receive, send):
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, id = time.monotonic(), _request_id(_header(scope, b"x-request-id"))
        state = scope.setdefault("state", {})
        if self.root_path:
            scope["root_path"] = self.root_path
        notes = {}
        NOTES.set(notes)
        state.update(request_id=id, log_prompts=self.prompts)
        status, is_over = 0, False

        async def tagged(message):
            nonlocal status, is_over
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message.get("headers", ())}
                message = {**message, "headers": [
                    *message.get("headers", ()), (b"x-request-id", id.encode()),
                    *(header for header in self.headers if header[0] not in present)]}
            else:
                is_over = not message.get("more_body")
                if status >= 500 and "error" not in notes:
                    notes["error"] = _told(message["body"])
            await send(message)

        self.activity.count += 1
        try:
            await self.app(scope, receive, tagged)
        except Exception:
            if status:
                raise  # half an answer is sent: uvicorn tells, and closes the connection
            LOG.exception("the request %s failed", id)
            error = ApiError(500, f"the server failed; its log tells more of request {id}")
            await error_response(error)(scope, receive, tagged)
        finally:
            self.activity.count -= 1
            self._write(scope, status, is_over, begin, notes)

    def _write(self, scope, status, is_over, begin, notes):
        path, state = route_path(scope), scope["state"]
        if self.on_end is not None:
            self.on_end(getattr(scope.get("route"), "path", "other"), scope["method"], status)
        if path in QUIET:
            return
        client = scope.get("client") or ("",)
        body = {"body": state["body"]} if self.prompts and "body" in state else {}
        log("request", request_id=state["request_id"], method=scope["method"], path=path, status=status,
            client=client[0], total_ms=round(1000 * (time.monotonic() - begin), 1),
            **({} if is_over else {"client_gone": True}), **notes, **body)


class Activity:
    """`count` (int): how many requests have no whole answer yet."""

    def __init__(self):
        self.count = 0


def _told(body):
    """The message of an error of ours; it says nothing of what was asked."""
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return None


def _request_id(given):
    """The client's id if it is one: it goes into headers and logs. Else a new one."""
    text = given.decode("latin-1")
    return text if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", text) else uuid.uuid4().hex


def cors_options(origins):
    """
    Arguments of Starlette's CORSMiddleware: who else may ask from a browser's page. Never with credentials of the
    browser's: a key is what a page gives by itself.

    Args:
        origins (Sequence[str]): "localhost", which is localhost on any port; "*", everybody; or origins as they are:
            "https://chat.example.com".

    Returns:
        dict.

    Raises:
        ValueError: What is no origin.
    """
    for origin in origins:
        if origin not in ("localhost", "*") and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
            raise ValueError(f"--cors_origins: expected localhost, * or https://HOST[:PORT], found {origin}")
    return {"allow_origins": [origin.lower() for origin in origins if origin != "localhost"],
            "allow_origin_regex": LOCALHOST if "localhost" in origins else None,
            "allow_methods": ["GET", "POST", "OPTIONS"], "allow_headers": ["*"],
            "expose_headers": ["X-Request-Id", "Retry-After"]}


class Keys:
    """
    Lets only those in who have a key, but to what is public. All keys are compared, each in constant time, so that
    nothing is learned from how long a refusal takes.

    Args:
        app: What is inside.
        keys (Sequence[str]): For `Authorization: Bearer KEY` and `X-Api-Key: KEY`.
        users (Sequence[str]): USER:PASSWORD, for `Authorization: Basic ...`.
        public (function): Of a path: whether anybody may have it.
    """

    def __init__(self, app, keys=(), users=(), public=lambda path: False):
        self.app, self.public = app, public
        self.keys, self.users = [_digest(key.encode()) for key in keys], [_digest(user.encode()) for user in users]
        self.challenge = ", ".join(["Bearer"] * bool(keys) + ['Basic realm="qwen", charset="UTF-8"'] * bool(users))

    async def __call__(self, scope, receive, send):
        """ASGI."""
        if (scope["type"] != "http" or not self.challenge or scope["method"] == "OPTIONS"
                or self.public(route_path(scope)) or self._knows(scope)):
            await self.app(scope, receive, send)
            return
        has_one = _header(scope, b"authorization") or _header(scope, b"x-api-key")
        found = "one that this server doesn't know" if has_one else "none"
        how = " or ".join(["Authorization: Bearer KEY"] * bool(self.keys) + ["Basic USER:PASSWORD"] * bool(self.users))
        error = ApiError(401, f"expected an API key ({how}), found {found}", code="invalid_api_key",
                         headers={"WWW-Authenticate": self.challenge})
        await error_response(error)(scope, receive, send)

    def _knows(self, scope):
        scheme, _, given = _header(scope, b"authorization").strip().partition(b" ")
        scheme, given = scheme.lower(), given.strip()
        is_known = _is_one_of(_header(scope, b"x-api-key").strip(), self.keys)
        if scheme == b"bearer":
            is_known |= _is_one_of(given, self.keys)
        if scheme == b"basic":
            try:
                is_known |= _is_one_of(base64.b64decode(given, validate=True), self.users)
            except (binascii.Error, ValueError):
                return is_known
        return is_known


def _digest(secret):
    return hashlib.sha256(secret).digest()


def _is_one_of(given, digests):
    """Whether a secret is one of those; every one of them is looked at."""
    found, digest = False, _digest(given)
    for known in digests:
        found |= hmac.compare_digest(digest, known)
    return found and bool(given)


class Bodies:
    """
    Reads a request's body, and refuses what is too long, too slow, or not JSON: in one place, before a route sees it.

    Args:
        app: What is inside; finds the body whole.
        paths (Collection[str]): Where bodies are sent to. Nobody reads them elsewhere.
        max_body (int): Bytes.
        seconds (float): In which a body must arrive.
        gate (function): Called with a path before anything is read; raises ApiError where nobody is let in now. So a
            flood of long requests takes neither memory nor time.
    """

    def __init__(self, app, paths, max_body=4 * 2**20, seconds=BODY_SECONDS, gate=None):
        self.app, self.paths, self.max_body, self.seconds = app, paths, max_body, seconds
        self.gate = gate or (lambda path: None)

    async def __call__(self, scope, receive, send):
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST" or route_path(scope) not in self.paths:
            await self.app(scope, receive, send)
            return
        try:
            self.gate(route_path(scope))
            body = await asyncio.wait_for(self._read(scope, receive), self.seconds)
            if body is None:  # the client is gone
                return
            _check_type(scope, body)
            parse_json(body)
        except asyncio.TimeoutError:
            error = ApiError(408, f"the body did not arrive within {self.seconds:g} s", headers=CLOSE)
        except ValueError as found:
            error = invalid(f"the body: {found}")
        except ApiError as found:
            error = found
        else:
            if scope["state"].get("log_prompts"):
                scope["state"]["body"] = body.decode("utf-8")
            await self.app(scope, _again(body, receive), send)
            return
        await error_response(error)(scope, receive, send)

    async def _read(self, scope, receive):
        """The body; None where the client is gone."""
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self.max_body:
            raise self._too_long(int(announced))
        parts, length, is_more = [], 0, True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self.max_body:
                raise self._too_long(length)
            is_more = message.get("more_body", False)
        return b"".join(parts)

    def _too_long(self, length):
        return ApiError(413, f"the body: expected at most {self.max_body} bytes, found {length} or more; --max_body "
                             "allows more", code="request_too_large", headers=CLOSE)


def _again(body, receive):
    """A `receive` that gives the body once more, then what else comes: that the client is gone."""
    is_given = False

    async def replay():
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _check_type(scope, body):
    """
    ApiError where a body is not said to be JSON, or said to be compressed. A page of another origin can send text
    without asking; JSON, its browser asks us about first.
    """
    kind = _header(scope, b"content-type").split(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        found = kind.decode("latin-1") or "none"
        raise ApiError(415, f"Content-Type: expected application/json, found {found}", param="Content-Type")
    encoding = _header(scope, b"content-encoding").strip().lower()
    if encoding not in (b"", b"identity"):
        raise ApiError(415, f"Content-Encoding: expected none, found {encoding.decode('latin-1')}: send the body as it "
                            "is", param="Content-Encoding")
    if not body.strip():
        raise ValueError("expected a JSON object, found nothing")


def parse_json(body):
    """
    What a request says.

    Args:
        body (bytes): UTF-8.

    Returns:
        dict.

    Raises:
        ValueError: Not JSON, and by the letter of it: NaN, infinities and numbers that would become one, a name twice
            in an object, half a surrogate pair; nested deeper than 64; or no object.
    """
    text = decode_text(body)
    try:
        content = json.loads(text, object_pairs_hook=object_of, parse_float=_finite, parse_int=_integer,
                             parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError(too_deep(DEEPEST)) from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {_kind(content)}")
    check_depth(content, DEEPEST)
    if "\\u" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return content


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _integer(text):
    if len(text) > LONGEST_INT:
        raise ValueError(f"{text[:40]}... is too large a number")
    return int(text)


def _no_number(name):
    raise ValueError(f"{name} is no JSON number")


def _kind(content):
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")
