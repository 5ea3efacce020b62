"""From the messages and tools of a chat request to its prompt, and to what holds its answer to a form."""
import asyncio
import sys
from typing import NamedTuple

from qwen_mindspore.common.text import shown
from qwen_mindspore.server.errors import invalid, too_long
from qwen_mindspore.server.fields import check_depth
from qwen_mindspore.text.chatml import write_prompt
from qwen_mindspore.text.react import STOP_WORD, MessageError, Open, react_messages, read_tools

__all__ = ["ChatPrompt", "chat_prompt", "check_room", "grammars_of", "in_thread", "stop_words_of"]

LONG = 20_000  # characters, from which on text is turned into ids outside the event loop


class ChatPrompt(NamedTuple):
    """
    What a chat model is asked.

    Attributes:
        text (str): As ChatML.
        ids (list[int]): The same.
        is_open (Open): Whether, and where, the answer goes on with the last message.
        tools (list[Tool]): Those that may be called; empty where none is to be.
        choice (str): "none", "auto", "required", or the name of the tool to call.
        param (str): The field that said so, for errors: "tool_choice" or "function_call".
    """

    text: str
    ids: list
    is_open: Open
    tools: list
    choice: str
    param: str

    @property
    def is_older(self):
        """Whether calls are told in the older form, as `function_call`."""
        return self.param == "function_call"


def chat_prompt(service, messages, tools=None, tool_choice=None, functions=None, function_call=None,
                add_generation_prompt=None, continue_final_message=None):
    """
    The prompt of a conversation. Nothing is left out of it, however long it is.

    Args:
        service (Service): Of a chat model.
        other arguments: The request's fields of the same names, see `ChatRequest`.

    Returns:
        ChatPrompt.

    Raises:
        ApiError: 400, with the field, for what is no such conversation.
    """
    if not service.chat:
        raise invalid(f"messages: {service.name} is a base model, which continues texts: use /v1/completions",
                      "messages")
    param = "function_call" if functions and not tools else "tool_choice"
    if tools and functions:
        raise invalid("functions: expected tools or functions, found both", "functions")
    for name, value in (("messages", messages), ("tools", tools), ("functions", functions)):
        check_depth(value, name, service.limits.max_depth)
    try:
        definitions = read_tools(tools or functions)
        choice, allowed = _tool_choice(tool_choice, function_call, definitions, param)
        used = definitions if choice != "none" else []
        if len(used) > service.limits.max_tools:
            raise invalid(f"tools: expected at most {service.limits.max_tools}, found {len(used)}", "tools")
        written, is_open = react_messages(_with_thoughts(messages), used, service.placement, bool(tools))
    except MessageError as error:
        raise invalid(str(error), error.param) from None
    is_open = _opened(is_open, messages[-1], add_generation_prompt, continue_final_message)
    text, ids = write_prompt(service.tokenizer, written, sys.maxsize, continue_last=bool(is_open))
    return ChatPrompt(text, ids, is_open, [tool for tool in used if allowed is None or tool.name in allowed], choice,
                      param)


async def in_thread(size, function, *args, **kwargs):
    """What a function returns: called in a thread where the text it is about has many characters."""
    return await asyncio.to_thread(function, *args, **kwargs) if size > LONG else function(*args, **kwargs)


def check_room(service, ids, param):
    """ApiError (400) where a prompt leaves no room for an answer."""
    if len(ids) >= service.room:
        raise too_long(len(ids), service.room, param)


def _with_thoughts(messages):
    """Messages, in which a call has the thought before it as content, if a client sends back what it was told."""
    kept = []
    for number, message in enumerate(messages):
        if message.get("audio") is not None:
            raise invalid(f"messages[{number}].audio: this model reads text alone", f"messages[{number}].audio")
        thought = message.get("reasoning_content")
        is_call = message.get("function_call") or message.get("tool_calls")
        if is_call and isinstance(thought, str) and not message.get("content"):
            message = {**message, "content": thought}
        kept.append(message)
    return kept


def _opened(is_open, last, add_generation_prompt, continue_final_message):
    """Open, once it is looked at whether the request says otherwise."""
    is_assistant = last.get("role") == "assistant"
    if continue_final_message:
        if add_generation_prompt:
            raise invalid("continue_final_message: expected add_generation_prompt to be false with it",
                          "continue_final_message")
        if not is_assistant:
            raise invalid("continue_final_message: expected the last message to be an assistant's, found one of role "
                          f"{shown(last.get('role'))}", "continue_final_message")
    elif add_generation_prompt is False and not is_open:
        raise invalid("add_generation_prompt: expected the last message to be an assistant's where it is false",
                      "add_generation_prompt")
    elif is_assistant and (add_generation_prompt or continue_final_message is False):
        return Open.NO
    return is_open


def _tool_choice(tool_choice, function_call, tools, param):
    """(choice, names of the tools that may be called or None for all); see ChatPrompt."""
    value, other, unused = ((function_call, "tool_choice", tool_choice) if param == "function_call" else
                            (tool_choice, "function_call", function_call))
    if unused not in (None, "none", "auto"):
        needed = "functions" if other == "function_call" else "tools"
        raise invalid(f"{other}: expected {needed} with it", other)
    if value in (None, "auto", "none", "required") and (value != "required" or param == "tool_choice"):
        if value == "required" and not tools:
            raise invalid(f"{param}: expected tools with it, found none", param)
        return (value or "auto") if tools else "none", None
    if isinstance(value, dict) and param == "tool_choice" and value.get("type") == "allowed_tools":
        return _allowed(value, tools)
    name = _chosen_name(value, param)
    names = [tool.name for tool in tools]
    if name is None:
        forms = ('"none", "auto" or {"name": ...}' if param == "function_call" else
                 '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}')
        raise invalid(f"{param}: expected {forms}, found {shown(value)}", param)
    if name not in names:
        raise invalid(f"{param}: no such tool {shown(name)}, expected one of {', '.join(names) or 'tools'}", param)
    return name, None


def _chosen_name(value, param):
    if not isinstance(value, dict):
        return None
    if param == "tool_choice":
        if value.get("type", "function") != "function":
            return None
        value = value.get("function", value)
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _allowed(value, tools):
    """Of {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}, or the same without the inner object."""
    inner = value.get("allowed_tools", value)
    mode, listed = (inner.get("mode"), inner.get("tools")) if isinstance(inner, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        raise invalid('tool_choice.allowed_tools: expected {"mode": "auto" or "required", "tools": [...]}, found '
                      f"{shown(inner)}", "tool_choice.allowed_tools")
    names = [_chosen_name(tool, "tool_choice") for tool in listed]
    known = [tool.name for tool in tools]
    for number, name in enumerate(names):
        if name not in known:
            place = f"tool_choice.allowed_tools.tools[{number}]"
            raise invalid(f"{place}: no such tool {shown(name)}, expected one of {', '.join(known) or 'tools'}", place)
    return mode, set(names)


async def grammars_of(service, count, response_format=None, prompt=None):
    """
    What holds answers to a form: that of `response_format`, or ReAct's, with the names of the tools and the schemas of
    their arguments. They are made in a thread: the first one of a service takes seconds.

    Args:
        service (Service): Has the Grammars.
        count (int): How many answers.
        response_format (dict): The request's field.
        prompt (ChatPrompt): With tools or without.

    Returns:
        list, a grammar for each answer; None for each where the model writes what it likes.

    Raises:
        ApiError: 400 for what can't be had: a schema, a call where there are no grammars, a form and tools at once.
    """
    makers = [(_response_grammar(service, response_format), "response_format")]
    if prompt is not None and prompt.tools:
        makers.append((_tool_grammar(service, prompt), "functions" if prompt.is_older else "tools"))
        if makers[0][0]:
            raise invalid("response_format: expected text where tools may be called", "response_format")
    for make, param in makers:
        if make is not None:
            try:
                return await asyncio.to_thread(lambda make=make: [make() for _ in range(count)])
            except ValueError as error:
                raise _refused(str(error), param, prompt) from None
    return [None] * count


def _refused(message, param, prompt):
    """The ApiError of a grammar that can't be had: its message may name a field, by the newer name."""
    field, colon, rest = message.partition(": ")
    if colon and field in ("tools", "tool_choice"):
        return invalid(f"{param if field == 'tools' else prompt.param}: {rest}",
                       param if field == "tools" else prompt.param)
    return invalid(f"{param}: {message}", param)


def _tool_grammar(service, prompt):
    """A function that makes the grammar of an answer that may call a tool, or None; see `grammars_of`."""
    if service.grammars is not None and service.tool_grammar:
        return lambda: service.grammars.react(prompt.tools, prompt.choice, prompt.is_open)
    if prompt.choice != "auto":
        raise invalid(f"{prompt.param}: a call can't be made sure of, since this server runs without grammars; "
                      'expected "auto" or "none"', prompt.param)
    return None


def _response_grammar(service, response_format):
    """The same of an answer in a form."""
    if response_format is None:
        return None
    check_depth(response_format, "response_format", service.limits.max_depth)
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise invalid(f"response_format.type: expected text, json_object or json_schema, found {shown(kind)}",
                      "response_format.type")
    schema = response_format.get("schema") if kind == "json_object" else _schema(response_format)
    if schema is not None and not isinstance(schema, (dict, bool)):
        raise invalid(f"response_format: expected a JSON schema, found {shown(schema)}", "response_format")
    if service.grammars is None:
        raise invalid("response_format: this server runs without grammars, expected text", "response_format")
    return service.grammars.json_object if schema is None else lambda: service.grammars.json_schema(schema)


def _schema(response_format):
    inner = response_format.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), (dict, bool)):
        raise invalid('response_format.json_schema: expected {"name": ..., "schema": {...}}, found '
                      f"{shown(inner)}", "response_format.json_schema")
    return inner["schema"]


def stop_words_of(prompt, has_grammar):
    """
    What ends an answer with tools besides the request's stop words: the tool speaks there, not the model. A call that
    is held to its schema may have those words in a string of its arguments, but not at the beginning of a line.
    """
    if not prompt.tools:
        return ()
    return (f"\n{STOP_WORD}" if has_grammar else STOP_WORD,)
