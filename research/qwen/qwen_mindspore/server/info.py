"""
What a server tells without generating: its model, its tokenizer, whether it is well, what it has counted.

Sources: vLLM 0.33, entrypoints/serve/tokenize (prompt or messages; count, max_model_len, tokens; /tokenizer_info);
llama.cpp, tools/server/README.md (content, with_pieces; /apply-template; /v1/chat/completions/input_tokens)
"""
import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

from qwen_mindspore import __version__
from qwen_mindspore.generate.settings import nearest
from qwen_mindspore.server.chat import prompt_of_body
from qwen_mindspore.server.errors import ApiError, error_response, invalid, unavailable
from qwen_mindspore.server.metrics import CONTENT_TYPE
from qwen_mindspore.server.protocol import ChatRequest, Objects
from qwen_mindspore.server.service import Service, service_of

__all__ = ["CHATML", "router"]

# ChatML as text.chatml writes it, for who renders prompts from /tokenizer_info.
CHATML = (
    "{% if not messages or messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}{% for message in messages %}{% if not loop.first %}\n{% endif %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
WHY = {"loading": "the model is being loaded: come again in a while", "draining": "the server is shutting down",
       "dead": "the engine has died: start the server again"}

router = APIRouter()
Id = Annotated[int, Field(ge=0, lt=2**31)]


def loaded(request: Request) -> Service:
    """The service; ApiError (503) while its model is loaded."""
    service = service_of(request)
    if service.condition == "loading":
        raise unavailable(WHY["loading"], 5, "loading")
    return service


Loaded = Annotated[Service, Depends(loaded)]


# Is it well?

@router.get("/health", tags=["operations"])
async def health(request: Request):
    """200 while the server can answer what it has taken on; 503 while the model is loaded, or the engine has died."""
    return _state(service_of(request), ("ready", "draining"))


@router.get("/ready", tags=["operations"])
async def ready(request: Request):
    """200 while new requests are taken; 503 while the model is loaded or the server is shutting down, too."""
    return _state(service_of(request), ("ready",))


def _state(service, good):
    state = service.condition
    if state in good:
        return JSONResponse({"status": "ok" if state == "ready" else state, **service.load()})
    response = error_response(unavailable(WHY[state], 5, state))
    response.headers["Cache-Control"] = "no-store"
    return response


@router.get("/version", tags=["operations"])
async def version():
    """This project's version."""
    return {"version": __version__}


@router.get("/metrics", tags=["operations"], response_class=Response)
def metrics(request: Request):
    """For Prometheus."""
    return Response(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


# The model

def _card(service):
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "qwen-mindspore",
            "root": service.name, "parent": None, "max_model_len": service.room, "chat": service.chat,
            "defaults": _defaults(service)}


def _defaults(service):
    """The settings of who says nothing, by the names that a request has for them."""
    settings = service.settings
    same = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
    return {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature if settings.draws else 0,
            **{name: getattr(settings, name) for name in same}}


@router.get("/v1/models", tags=["models"])
async def models(service: Loaded):
    """The one model, as a list; its card has the room of prompt and answer, and the defaults of a request."""
    return {"object": "list", "data": [_card(service)]}


@router.get("/v1/models/{model:path}", tags=["models"])
async def model(model: str, service: Loaded):
    """Its card."""
    if model != service.name:
        raise ApiError(404, f"model: expected {service.name}, found {model}", param="model", code="model_not_found")
    return _card(service)


# The tokenizer

def _refused(message, param):
    return PydanticCustomError("field", "{message}", {"message": message, "param": param, "is_whole": True})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = Field(None, description="not looked at: there is one model")


class Tokenize(_Body):
    """`prompt`, `content`: a text; `messages`: a conversation, with what /v1/chat/completions takes beside."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    prompt: str | None = Field(None, description="vLLM's; the answer has count, max_model_len and tokens")
    content: str | None = Field(None, description="llama.cpp's; the answer has tokens")
    messages: Objects | None = None
    with_pieces: bool = Field(False, description="with content: [{id, piece}]; a piece that is no text as its bytes")
    return_token_strs: bool | None = Field(False, description="with prompt and messages: token_strs as well")
    parse_special: bool = Field(False, description="control tokens in the text are control tokens")
    add_special: bool = Field(False, description="llama.cpp's, without effect: Qwen has none to add")
    add_special_tokens: bool = Field(True, description="vLLM's, without effect: Qwen has none to add")

    @model_validator(mode="after")
    def _one(self):
        given = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise _refused(f"expected one of prompt, content and messages, found {' and '.join(given) or 'none'}",
                           "prompt")
        if given != ["messages"] and self.model_extra:
            name = next(iter(self.model_extra))
            raise _refused(f"Unrecognized request argument: {name}{nearest(name, list(type(self).model_fields))}", name)
        return self


@router.post("/tokenize", tags=["tokenizer"])
async def tokenize(body: Tokenize, service: Loaded):
    """A text, or a conversation, as ids."""
    if body.messages is not None:
        ids = (await prompt_of_body(service, _chat_request(body))).ids
        return await asyncio.to_thread(_told, body, service, ids)
    return await asyncio.to_thread(_tokenized, body, service)


def _chat_request(body):
    try:
        return ChatRequest.model_validate({"messages": body.messages, **body.model_extra})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _tokenized(body, service):
    text = body.content if body.prompt is None else body.prompt
    # The name of a control token alone is that token, as vLLM has it: so clients ask for the one that ends a text.
    is_name = body.prompt in service.tokenizer.special_tokens
    special = "all" if body.parse_special or is_name else set()
    return _told(body, service, service.tokenizer.encode(text, allowed_special=special))


def _told(body, service, ids):
    """The response, written here: in the event loop millions of ids would keep all others waiting."""
    return JSONResponse(_content(body, service, ids))


def _content(body, service, ids):
    tokenizer = service.tokenizer
    if body.content is not None:
        return {"tokens": [{"id": id, "piece": _piece(tokenizer, id)} for id in ids] if body.with_pieces else ids}
    strings = {"token_strs": [tokenizer.decode([id]) for id in ids]} if body.return_token_strs else {}
    return {"count": len(ids), "max_model_len": service.room, "tokens": ids, **strings}


def _piece(tokenizer, id):
    raw = tokenizer.decode_bytes([id])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


@router.post("/apply-template", tags=["tokenizer"])
async def apply_template(body: ChatRequest, service: Loaded):
    """The prompt that a request to /v1/chat/completions comes to, tools and all."""
    return {"prompt": (await prompt_of_body(service, body)).text}


@router.post("/v1/chat/completions/input_tokens", tags=["tokenizer"])
async def input_tokens(body: ChatRequest, service: Loaded):
    """How many tokens that prompt has."""
    return {"object": "response.input_tokens", "input_tokens": len((await prompt_of_body(service, body)).ids)}


class Detokenize(_Body):
    """Ids."""

    tokens: Annotated[list[Id], Field(fail_fast=True)]


@router.post("/detokenize", tags=["tokenizer"])
def detokenize(body: Detokenize, service: Loaded):
    """Ids as text, control tokens by their names: `prompt`, which is vLLM's name for it, and `content`, llama.cpp's."""
    try:
        text = service.tokenizer.decode(body.tokens)
    except ValueError as error:
        raise invalid(f"tokens: {error}", "tokens") from None
    return {"prompt": text, "content": text}


@router.get("/tokenizer_info", tags=["tokenizer"])
async def tokenizer_info(service: Loaded):
    """What a client needs to know that renders and counts by itself, as lm-eval does."""
    tokenizer = service.tokenizer
    names = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.get)
    return {"tokenizer_class": "QWenTokenizer", "vocab_size": tokenizer.vocab_size, "model_max_length": service.room,
            "bos_token": None, "eos_token": names[0], "pad_token": names[0], "unk_token": None,
            "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
            "additional_special_tokens": names[1:3], "chat_template": CHATML if service.chat else None}
