"""
Conversations with tools as OpenAI's API has them, in both its generations: `functions` with `function_call` and role
function, and `tools` with `tool_calls` and role tool. They are read into one form, and what is none of it is named.
"""
import json
from typing import Any, NamedTuple

from qwen_mindspore.common.text import shown

__all__ = ["LONGEST_NAME", "MessageError", "Step", "Tool", "json_text", "read_messages", "read_tools", "stripped"]

ROLES = ("system", "developer", "user", "assistant", "function", "tool")
LONGEST_NAME = 256


class MessageError(ValueError):
    """
    A message or a tool that is not what the API says; one line.

    Attributes:
        param (str): The place, as "messages[2].content".
    """

    def __init__(self, param, message):
        super().__init__(f"{param}: {message}")
        self.param = param


class Tool(NamedTuple):
    """
    A tool.

    Fields:
        name (str): What the model calls it; Qwen's `name_for_model`.
        description (str): What it is good for; Qwen's `description_for_model`.
        parameters (dict | list | None): JSON schema of its arguments, or Qwen's list of {name, description, required,
            schema}. It is written into the prompt as it is.
        human (str | None): Qwen's `name_for_human`; None: the name.
        api (str): Where the definition came from, "functions" or "tools": OpenAI's first and second generation.
    """

    name: str
    description: str = ""
    parameters: Any = {}  # noqa: RUF012 (only read)
    human: str | None = None
    api: str = "functions"


def read_tools(definitions):
    """
    The tools of a request.

    Args:
        definitions (list | None): Dicts as in `functions`, with Qwen's names or OpenAI's; as in `tools`, {"type":
            "function", "function": {...}}; or `Tool`s.

    Returns:
        list[Tool].

    Raises:
        MessageError: What is no definition of a tool; two tools of one name.
    """
    if definitions is None:
        return []
    if not isinstance(definitions, (list, tuple)):
        raise MessageError("tools", f"expected a list, found {shown(definitions)}")
    tools = [tool if isinstance(tool, Tool) else _read_tool(tool, number) for number, tool in enumerate(definitions)]
    names = set()
    for number, tool in enumerate(tools):
        if tool.name in names:
            raise MessageError(f"{tool.api}[{number}]", f"expected another name, found {shown(tool.name)} again")
        names.add(tool.name)
    return tools


def _read_tool(definition, number):
    if not isinstance(definition, dict):
        raise MessageError(f"tools[{number}]", f"expected an object, found {shown(definition)}")
    api, place = "functions", f"functions[{number}]"
    if "function" in definition or (not definition.keys() & {"name", "name_for_model"} and "type" in definition):
        api, place = "tools", f"tools[{number}].function"
        if definition.get("type", "function") != "function":
            raise MessageError(f"tools[{number}].type", f"expected 'function', found {shown(definition['type'])}")
        definition = definition.get("function")
        if not isinstance(definition, dict):
            raise MessageError(place, f"expected an object, found {shown(definition)}")
    name = definition.get("name_for_model", definition.get("name"))
    human = definition.get("name_for_human", definition.get("name", ""))
    description = definition.get("description_for_model", definition.get("description"))
    parameters = definition.get("parameters", {})
    if not isinstance(name, str) or not _is_name(name):
        raise MessageError(f"{place}.name", f"expected a name on one line of up to {LONGEST_NAME} characters, found "
                           f"{shown(name)}")
    for key, value in (("name_for_human", human), ("description", description)):
        if not isinstance(value, (str, type(None))):
            raise MessageError(f"{place}.{key}", f"expected text, found {shown(value)}")
    if not isinstance(parameters, (dict, list, type(None))):
        raise MessageError(f"{place}.parameters", f"expected a JSON schema, found {shown(parameters)}")
    json_text(parameters, f"{place}.parameters")
    return Tool(name, description or "", parameters, human, api)


def _is_name(name):
    is_line = name.strip() == name != "" and len(name.splitlines()) == 1
    return is_line and len(name) <= LONGEST_NAME and not any("\ud800" <= character <= "\udfff" for character in name)


def json_text(content, param):
    """The JSON of a content, as `json.dumps` writes it, without escapes; MessageError for what has none."""
    try:
        return json.dumps(content, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(param, f"expected JSON: {error}") from None


SYSTEMS = {"system", "developer"}


class Step(NamedTuple):
    """
    A message of a conversation in which a message has one call at most, and its result comes behind it.

    Fields:
        role (str): "user", "assistant" or "function".
        content (str): Stripped.
        call (tuple[str, str] | None): Name and arguments.
        param (str): The place that it was read from.
    """

    role: str
    content: str
    call: tuple | None
    param: str


def stripped(text):
    """A content without the newlines before and the white space behind it: the model was trained on such ones."""
    return text.lstrip("\n").rstrip()


def read_messages(messages, is_strict=False):
    """
    The messages of a request.

    Args:
        messages (list[dict]): See `text.react.react_messages`.
        is_strict (bool): There is one system message at most, and a user's.

    Returns:
        (list[dict], list[Step]), the system message, if there is one, and the others; if there are others, a user's is
        among them.

    Raises:
        MessageError: What is no conversation.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise MessageError("messages", f"expected a list of messages, found {shown(messages)}")
    roles = [_role(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if "user" not in roles and (is_strict or not set(roles) <= SYSTEMS):
        raise MessageError("messages", "expected at least one user's message, found none")
    system, steps, waiting = [], [], {}
    for number, (role, message) in enumerate(zip(roles, messages)):
        param = f"messages[{number}]"
        if role in SYSTEMS:
            if number and (is_strict or steps):
                raise MessageError(f"{param}.role", f"expected the {role} message to be the first and the only one")
            before = f"{system[0]['content']}\n" if system else ""
            system = [{"role": "system", "content": f"{before}{_content(message, param)}"}]
        elif role in ("function", "tool") and waiting:
            place = _called(waiting, message, param)
            steps[place] = Step("function", _content(message, param), None, param)
        elif role == "tool":
            raise MessageError(f"{param}.role", "expected tool_calls before a tool's result, found none open")
        else:
            _check_results(waiting)
            steps += _steps(role, message, param, waiting, len(steps))
    _check_results(waiting)
    return system, steps


def _role(message, param):
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        found = shown(message) if not isinstance(message, dict) else shown(role)
        raise MessageError(f"{param}.role", f"expected one of {', '.join(ROLES)}, found {found}")
    return role


def _steps(role, message, param, waiting, start):
    """The steps of a message. Places for the results of its calls are None, and noted: {place: (id, param)}."""
    content = _content(message, param)
    call = message.get("function_call") if role == "assistant" else None
    calls = message.get("tool_calls") if role == "assistant" else None
    if calls is None or calls == []:
        return [Step(role, content, None if call is None else _call(call, f"{param}.function_call"), param)]
    if not isinstance(calls, (list, tuple)):
        raise MessageError(f"{param}.tool_calls", f"expected a list, found {shown(calls)}")
    if call is not None:
        raise MessageError(f"{param}.function_call", "expected tool_calls or function_call, found both")
    steps = []
    for number, called in enumerate(calls):
        place = f"{param}.tool_calls[{number}]"
        if not isinstance(called, dict):
            raise MessageError(place, f"expected an object, found {shown(called)}")
        call = _call(called.get("function"), f"{place}.function")
        steps += [Step(role, "" if number else content, call, param), None]
        waiting[start + len(steps) - 1] = called.get("id"), place
    return steps


def _call(call, param):
    if not isinstance(call, dict):
        raise MessageError(param, f"expected an object with name and arguments, found {shown(call)}")
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not name:
        raise MessageError(f"{param}.name", f"expected text, found {shown(name)}")
    if isinstance(arguments, dict):
        arguments = json_text(arguments, f"{param}.arguments")
    if not isinstance(arguments, str):
        raise MessageError(f"{param}.arguments", f"expected JSON as text, found {shown(arguments)}")
    return name, arguments


def _called(waiting, message, param):
    """The place of a result: that of the first call with its id; a result without one is that of the only call left."""
    wanted = message.get("tool_call_id")
    places = [place for place, (id, _) in waiting.items() if id == wanted]
    if wanted is None and len(waiting) == 1:
        places = list(waiting)
    if not places:
        ids = ", ".join(shown(id) for id, _ in waiting.values())
        raise MessageError(f"{param}.tool_call_id", f"expected the id of a call without a result ({ids}), found "
                           f"{shown(wanted)}")
    del waiting[places[0]]
    return places[0]


def _check_results(waiting):
    if waiting:
        id, param = next(iter(waiting.values()))
        raise MessageError(param, f"expected a message of role tool with the result of {shown(id)}, found none")


def _content(message, param):
    """The text of a message, stripped. An assistant's may be missing."""
    content = message.get("content")
    param = f"{param}.content"
    if content is None and ("content" in message or message["role"] == "assistant"):
        return ""
    if isinstance(content, str):
        return stripped(content)
    if not isinstance(content, (list, tuple)):
        raise MessageError(param, f"expected text, found {shown(content) if 'content' in message else 'nothing'}")
    return stripped("".join(_part(part, f"{param}[{number}]") for number, part in enumerate(content)))


def _part(part, param):
    if not isinstance(part, dict):
        raise MessageError(param, f'expected {{"type": "text", "text": ...}}, found {shown(part)}')
    if part.get("type") != "text":
        raise MessageError(f"{param}.type", f"expected 'text', which is all this model reads, found "
                           f"{shown(part.get('type'))}")
    if not isinstance(part.get("text"), str):
        raise MessageError(f"{param}.text", f"expected text, found {shown(part.get('text'))}")
    return part["text"]
