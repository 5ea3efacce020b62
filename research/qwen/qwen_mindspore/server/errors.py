"""What went wrong, as OpenAI's API tells it: {"error": {"message", "type", "param", "code"}} and an HTTP status."""
import json
import re

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qwen_mindspore.common.text import one_line, shown

__all__ = ["TYPES", "ApiError", "error_of", "error_response", "install_handlers", "invalid", "overloaded", "too_long",
           "unavailable", "validation_error"]

# By HTTP status; those of llama.cpp's server (tools/server/server-common.cpp), which are OpenAI's where it has one.
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         405: "invalid_request_error", 413: "invalid_request_error", 415: "invalid_request_error",
         429: "rate_limit_error", 501: "not_supported_error", 503: "unavailable_error"}


class ApiError(Exception):
    """
    An answer that is an error.

    Args:
        status (int): HTTP's.
        message (str): One line.
        type (str): Default: by the status.
        param (str): Which field of the request, as "messages[2].content".
        code (str): What programs look at.
        headers (dict[str, str]): Of the response.
        **extra: Other keys of the error.
    """

    def __init__(self, status, message, type=None, param=None, code=None, headers=None, **extra):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message), param, code
        self.type = type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers, self.extra = headers, extra

    def body(self):
        """dict, the JSON that is sent."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code,
                          **self.extra}}


def invalid(message, param=None, code=None):
    """The ApiError of a request that can't be understood or done (400)."""
    return ApiError(400, message, param=param, code=code)


def too_long(prompt_tokens, room, param):
    """The ApiError of a prompt that leaves no room for an answer (400), with both numbers."""
    return ApiError(400, f"This model's maximum context length is {room} tokens, the answer's included, and the prompt "
                         f"has {prompt_tokens}: shorten it", type="exceed_context_size_error", param=param,
                    code="context_length_exceeded", n_prompt_tokens=prompt_tokens, n_ctx=room)


def overloaded(message, seconds=1):
    """The ApiError of a full queue (429), and when to come again."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(min(max(1, round(seconds)), 60))})


def unavailable(message, seconds=1, code=None):
    """The ApiError of a server that can't answer now (503), and when to come again."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(max(1, round(seconds)))})


def error_of(error):
    """The ApiError that any exception is: one that nobody expected is a fault of the server (500)."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def error_response(error):
    """The Response that tells an exception."""
    error = error_of(error)
    return Response(json.dumps(error.body()), error.status, error.headers, media_type="application/json")


def install_handlers(app):
    """Have a FastAPI application tell every error in this shape."""
    async def handler(request, error):
        return error_response(error)

    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handler)


def validation_error(errors):
    """
    The ApiError (400) of what pydantic found wrong in a body.

    Args:
        errors (list[dict]): See `pydantic.ValidationError.errors`. The first one is told.
    """
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    context = first.get("ctx") or {}
    if first["type"] == "json_invalid":
        return invalid(f"the body is not valid JSON: {context.get('error')}")
    if not place and "param" not in context:
        return invalid("the body: expected a JSON object, sent with Content-Type: application/json")
    if context.get("is_whole"):
        return invalid(first["msg"], context["param"])
    # Of a field that may be of several types all are told: the one that got furthest knows best what is wrong.
    first = max((error for error in errors if error["loc"][:2] == first["loc"][:2]),
                key=lambda error: (len(_path(_place(error))), _path(_place(error))))
    param = _path(_place(first))
    if first["type"] == "missing":
        return invalid(f"{param}: is missing", param)
    found = "" if first["type"] == "extra_forbidden" else f", found {shown(first.get('input'))}"
    message = "unrecognized argument" if first["type"] == "extra_forbidden" else first["msg"]
    return invalid(f"{param}: {message[:1].lower()}{message[1:]}{found}", param)


def _place(error):
    return [part for part in error["loc"] if part != "body"]


def _path(place):
    """("messages", 2, "content") -> "messages[2].content"; names of the branches of a union stay out."""
    text = ""
    for number, part in enumerate(place):
        if isinstance(part, int):
            text += f"[{part}]"
        elif number == 0 or not re.fullmatch(r"(str|int|float|bool|(list|dict)\[.*\])", part):
            text += f".{part}" if text else part
    return text
