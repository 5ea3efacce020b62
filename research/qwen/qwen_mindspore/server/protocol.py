"""
The requests of OpenAI's API: what fields there are, and of what type.

Every field that a client of OpenAI's, vLLM's or Qwen's own server knows is implemented, or it is refused by name unless
its value changes nothing. What is not known at all is refused as well: a misspelt `max_token` must not be lost in
silence. Which values a field may have is looked at where it becomes a setting, see `server.fields`.

Sources: https://platform.openai.com/docs/api-reference; vllm/entrypoints/openai (0.33); openai_api.py of QwenLM/Qwen
"""
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from qwen_mindspore.common.text import shown
from qwen_mindspore.generate.settings import nearest

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "Objects", "StreamOptions"]

Int64 = Annotated[int, Field(ge=-2**63, le=2**63 - 1)]  # as far as clients' integers, counters and errors go

# Values of fields that change nothing here, besides null; any other is refused. `...`: every value is one of them.
NEUTRAL = {
    # Names, hints and bookkeeping of OpenAI's: an answer is the same with and without.
    "user": ..., "metadata": ..., "safety_identifier": ..., "prompt_cache_key": ..., "prompt_cache_retention": ...,
    "prediction": ...,  # speeds an answer up at most
    "store": (False,), "service_tier": ("auto", "default"),
    # vLLM's
    "best_of": (1,), "use_beam_search": (False,), "length_penalty": (1, 1.0), "priority": (0,),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,), "spaces_between_special_tokens": ...,
    "add_special_tokens": ...,  # Qwen has none to add
    "truncate_prompt_tokens": (), "allowed_token_ids": (), "bad_words": ([],), "cache_salt": (),
    "prompt_logprobs": (), "logits_processors": (), "structured_outputs": (), "guided_json": (), "guided_regex": (),
    "guided_choice": (), "guided_grammar": (), "kv_transfer_params": (), "vllm_xargs": (), "bad_words_ids": (),
    "return_tokens_as_token_ids": (False,), "cache_prompt": (True,),
}
CHAT_NEUTRAL = {
    **NEUTRAL,
    "modalities": (["text"],), "audio": (), "reasoning_effort": ("none",), "verbosity": ("medium",),
    "web_search_options": (), "echo": (False,), "include_reasoning": (True,), "documents": ([],), "chat_template": (),
    "chat_template_kwargs": ({},), "mm_processor_kwargs": ({},), "media_io_kwargs": ({},), "max_length": (),
    "suffix": (), "prompt_cache_options": ..., "moderation": (),
}
COMPLETION_NEUTRAL = {**NEUTRAL, "suffix": ("",)}
ADVICE = {"max_length": ": it has no effect in Qwen's own server; max_tokens is the length of an answer",
          "audio": ": this model reads and writes text", "modalities": ": this model reads and writes text",
          "suffix": ": this model writes what follows a text, not what stands between two",
          "best_of": ": ask for n answers and choose among them",
          "chat_template": ": Qwen's form of a conversation is fixed",
          "structured_outputs": ": give response_format", "guided_json": ": give response_format"}


def _field(description=None, **ranges):
    """A field that may be missing, and what the interface's document says of it; `server.fields` looks at values."""
    return Field(None, description=description, json_schema_extra=ranges or None)


def _refused(message, param):
    return PydanticCustomError("field", "{message}", {"message": message, "param": param, "is_whole": True})


def _numbers(biases):
    for name, bias in biases.items() if isinstance(biases, dict) else ():
        if type(bias) not in (int, float):
            raise _refused(f"logit_bias.{name}: input should be a valid number, found {shown(bias)}",
                           f"logit_bias.{name}")
    return biases


# The first item that is wrong is told, and no other looked at: a million of them would keep the event loop for minutes.
Texts, Ids = Annotated[list[str], Field(fail_fast=True)], Annotated[list[Int64], Field(fail_fast=True)]
ListsOfIds = Annotated[list[Ids], Field(fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Biases = Annotated[dict[str, float], BeforeValidator(_numbers)]


class StreamOptions(BaseModel):
    """What comes with a stream: see OpenAI's and vLLM's `stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = _field("accepted; nothing is added to the chunks")


class GenerationRequest(BaseModel):
    """What requests for answers have in common. null is the same as a field that isn't there."""

    model_config = ConfigDict(strict=True, extra="forbid")
    neutral: ClassVar[dict] = NEUTRAL

    model: str | None = _field("any name: the one model of this server answers, and says its own")
    max_tokens: Int64 | None = _field("the most tokens of an answer", minimum=1)
    min_tokens: Int64 | None = _field("before so many tokens nothing ends an answer", minimum=0)
    n: Int64 | None = _field("how many answers", minimum=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Texts | None = _field("what ends an answer and is cut off it")
    stop_token_ids: Ids | None = None
    ignore_eos: bool | None = _field("the model's own end does not end an answer")
    seed: Int64 | None = _field("same seed, same answer; of n answers the next has the next seed")
    do_sample: bool | None = _field("draw tokens; by default where temperature, top_p, ... are given")
    temperature: float | None = _field("0: the likeliest token", minimum=0)
    top_p: float | None = _field("draw from the fewest likeliest tokens that hold so much; 1: off",
                                 exclusiveMinimum=0, maximum=1)
    top_k: Int64 | None = _field("draw from so many likeliest tokens; 0 or -1: off", minimum=-1)
    min_p: float | None = _field("draw from tokens of this share of the likeliest one's probability; 0: off",
                                 minimum=0, maximum=1)
    repetition_penalty: float | None = _field("above 1: less of what prompt and answer hold", exclusiveMinimum=0)
    presence_penalty: float | None = _field("above 0: less of what the answer holds", minimum=-2, maximum=2)
    frequency_penalty: float | None = _field("the same, each time that it does", minimum=-2, maximum=2)
    logit_bias: Biases | None = _field("added to the logits of these ids")
    response_format: dict[str, Any] | None = _field("text, json_object or json_schema")
    return_token_ids: bool | None = _field("ids of prompt and answer as well")
    request_id: str | None = Field(None, max_length=128, description="becomes part of the answer's id")

    @model_validator(mode="before")
    @classmethod
    def _know_fields(cls, values):
        """Refuse what is not known, or known and not to be had; take out what changes nothing."""
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name not in cls.neutral:
                hint = nearest(name, [*cls.model_fields])
                raise _refused(f"Unrecognized request argument: {shown(name)[1:-1]}{hint}", name)
            elif value is not None and cls.neutral[name] is not ...:
                accepted = cls.neutral[name]
                if not any(value == other and type(value) is type(other) for other in accepted):
                    expected = " or ".join([*map(repr, accepted), "null"])
                    raise _refused(f"{name}: not supported, expected {expected}, found {shown(value)}"
                                   f"{ADVICE.get(name, '')}", name)
        return kept

    @model_validator(mode="after")
    def _stream_only(self):
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options: expected stream to be true with it", "stream_options")
        return self


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    neutral: ClassVar[dict] = CHAT_NEUTRAL

    messages: Objects = Field(description="role and content; roles: system, developer, user, assistant, "
                                                       "tool, function")
    max_completion_tokens: Int64 | None = _field("the same as max_tokens", minimum=1)
    logprobs: bool | None = _field("how likely each token of the answer was")
    top_logprobs: Int64 | None = _field("and so many of the likeliest tokens at its place", minimum=0, maximum=20)
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = _field("accepted: Qwen calls one tool a turn")
    functions: Objects | None = _field("the older form of tools")
    function_call: str | dict[str, Any] | None = _field("the older form of tool_choice")
    add_generation_prompt: bool | None = _field("true: begin a new message behind an assistant's")
    continue_final_message: bool | None = _field("go on with the last message, an assistant's")


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    neutral: ClassVar[dict] = {name: COMPLETION_NEUTRAL[name] for name in COMPLETION_NEUTRAL if name != "best_of"}

    max_tokens: Int64 | None = _field("the most tokens of an answer; 16 by default; 0 with echo: the prompt alone",
                                    minimum=0)
    prompt: str | Texts | Ids | ListsOfIds = Field(description="a text, ids, or a list of either")
    best_of: Int64 | None = _field("the same as n, or nothing")
    echo: bool | None = _field("the prompt in front of the answer")
    logprobs: Int64 | None = _field("so many of the likeliest tokens at each place", minimum=0, maximum=20)
    parse_special: bool | None = _field("control tokens written in the prompt are control tokens")
