"""
JSON schemas from strangers, made ready for a grammar: of a bounded size, without what the grammar's library would take
too long for or get wrong. Whatever fits the schema that comes out fits the one that went in.
"""
import json
from decimal import Decimal

from qwen_mindspore.common.json_text import check_depth
from qwen_mindspore.common.text import one_line, shown

__all__ = ["forces_little", "parameters_schema", "prepared"]

LONGEST = 64 * 1024  # characters of a schema
DEEPEST = 64  # objects and lists within each other; llguidance reads 128, with some of its own around it
LONGEST_PATTERN = 4096
LARGEST = 2 ** 53  # bounds beyond are no longer exact in a double; llguidance cuts them to 64 bits
MOST_MULTIPLES = 20_000  # of all multipleOf together: the states of an automaton that divides; 10,000 take 10 ms
LONGEST_FORCED = 256

# Those that llguidance knows. Others are annotations, by the standard all are.
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")

# Where schemas stand within a schema.
SCHEMAS = {"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
           "unevaluatedItems", "unevaluatedProperties"}
LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
MAPS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}

# An object with one of these may hold more than its `properties` say, or is a part of one that does.
OPENING = {"$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "dependentSchemas", "else", "if", "not",
           "oneOf", "patternProperties", "then", "unevaluatedProperties"}


def parameters_schema(parameters):
    """
    The schema of a tool's arguments.

    Objects hold what their schema names and nothing else, if it doesn't say otherwise: a small model never comes to an
    end of properties that nobody asked for. Arguments are an object if the schema names no type.

    Args:
        parameters (dict | list | None): A JSON schema; Qwen's list of {name, description, required, schema}, or with
            the schema's own keys in place of `schema`; nothing: no arguments.

    Returns:
        dict, which `prepared` takes.

    Raises:
        ValueError: It is none of these, or too large or deep.
    """
    if isinstance(parameters, (list, tuple)):
        parameters = _schema_of_list(parameters)
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        raise ValueError(f"expected a JSON schema, an object, found {shown(parameters)}")
    _check_size(parameters)
    closed = _closed(parameters, parameters, _may_close_definitions(parameters))
    return closed if closed.keys() & {"type", *OPENING} - {"additionalProperties"} else {"type": "object", **closed}


def _schema_of_list(parameters):
    properties, required = {}, []
    for number, parameter in enumerate(parameters):
        name = parameter.get("name") if isinstance(parameter, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"parameter {number}: expected an object with a name, found {shown(parameter)}")
        own = {key: value for key, value in parameter.items() if key not in ("name", "required", "schema")}
        properties[name] = parameter.get("schema", own)
        if parameter.get("required") is True:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required} if properties else {}


def _may_close_definitions(schema):
    """
    Whether no definition is a part of a larger object: closed, it would forbid what another part asks for; or one of
    several of which just one may fit: closed, they might not overlap any more, and open they do.
    """
    return not any("unevaluatedProperties" in node or len(_listed(node, "allOf")) > 1
                   or (node.keys() & {"$ref", "allOf"} and node.keys() & {"properties", "required"})
                   or ("oneOf" in node and not _are_tagged(node["oneOf"], schema))
                   for node in _nodes(schema))


def _are_tagged(schemas, root):
    """Whether each of some objects has a constant that the others have not, as a discriminator."""
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        return False
    schemas = [_resolved(schema, root) for schema in schemas]
    names = set.intersection(*({name for name in _listed(schema, "required") if isinstance(name, str)}
                               for schema in schemas)) if schemas else ()
    return any(len({_tag(schema, name) for schema in schemas} - {None}) == len(schemas) for name in names)


def _resolved(schema, root):
    """A definition in place of a reference to it."""
    _, _, place = str(schema.get("$ref", "")).partition("#/")
    kind, _, name = place.partition("/")
    definitions = root.get(kind) if kind in ("$defs", "definitions") else None
    found = definitions.get(name) if isinstance(definitions, dict) else None
    return found if isinstance(found, dict) else schema


def _tag(schema, name):
    names = schema.get("properties")
    inner = names.get(name) if isinstance(names, dict) else None
    return json.dumps(inner["const"]) if isinstance(inner, dict) and "const" in inner else None


def _listed(schema, key):
    """A keyword's list or the names of its object; nothing if it is something else."""
    value = schema.get(key)
    return list(value) if isinstance(value, (list, tuple, dict)) else []


def _closed(schema, root, with_definitions):
    """The schema with `additionalProperties: false` where an object is all that its properties say."""
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    for key in ("properties", *(("$defs", "definitions") if with_definitions else ())):
        if isinstance(schema.get(key), dict):
            schema[key] = {name: _closed(inner, root, with_definitions) for name, inner in schema[key].items()}
    if isinstance(schema.get("items"), dict):
        schema["items"] = _closed(schema["items"], root, with_definitions)
    for key in {"anyOf", "oneOf"} & schema.keys():
        is_all = not schema.keys() & {"properties", "required", *OPENING} - {key}
        if is_all and isinstance(schema[key], list) and (key == "anyOf" or _are_tagged(schema[key], root)):
            schema[key] = [_closed(inner, root, with_definitions) for inner in schema[key]]
    names, required = schema.get("properties"), schema.get("required", [])
    is_whole = isinstance(names, dict) and isinstance(required, list) and not schema.keys() & OPENING
    if is_whole and all(isinstance(name, str) and name in names for name in required):
        schema["additionalProperties"] = False
    return schema


def prepared(schema):
    """
    A schema as the grammar's library may have it.

    Args:
        schema (dict | bool): Any JSON.

    Returns:
        dict, without formats that are annotations, and with bounds of numbers that are exact.

    Raises:
        ValueError: What is too large, too deep, or nothing that the library would do right; one line that names it.
    """
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise ValueError(f"expected a JSON schema, an object, found {shown(schema)}")
    _check_size(schema)
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}  # options of the library
    multiples = sum(_digits(node["multipleOf"]) for node in _nodes(schema) if "multipleOf" in node)
    if multiples > MOST_MULTIPLES:
        raise ValueError(f"multipleOf: expected values of up to {MOST_MULTIPLES} units of their last digit, together, "
                         f"found {multiples}")
    return _prepared(schema)


def _check_size(schema):
    try:
        check_depth(schema, DEEPEST)
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, or not for a schema: {one_line(error)}") from None
    if size > LONGEST:
        raise ValueError(f"expected up to {LONGEST} characters of JSON, found {size}")


def _prepared(schema):
    if not isinstance(schema, dict):
        return schema
    _check(schema)
    result = {}
    for key, value in schema.items():
        if key == "format" and value not in FORMATS:
            continue
        result[key] = _inner(key, value, _prepared)
    return _bounded(result)


def _inner(key, value, change):
    """A keyword's value with its schemas changed."""
    if key in MAPS and isinstance(value, dict):
        return {name: change(inner) for name, inner in value.items()}
    if isinstance(value, list) and (key in LISTS or key in SCHEMAS):
        return [change(inner) for inner in value]
    return change(value) if key in SCHEMAS else value


def _nodes(schema):
    """Every schema within a schema, itself included."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            for key, value in node.items():
                _inner(key, value, waiting.append)


def _check(schema):
    for text in (schema.get("pattern"), *_listed(schema, "patternProperties")):
        if isinstance(text, str) and len(text) > LONGEST_PATTERN:
            raise ValueError(f"pattern: expected up to {LONGEST_PATTERN} characters, found {len(text)}")
    least, covered = schema.get("minProperties", 0), len(_listed(schema, "required"))
    if _is_number(least) and least > max(1, covered):
        # Names of properties that are not listed may come twice, and would count twice.
        raise ValueError(f"minProperties: expected no more than there are required properties ({covered}), found "
                         f"{shown(least)}")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _digits(value):
    """A number without its decimal point and the zeros at its end: 0.25 -> 25."""
    if not _is_number(value) or value == 0:
        return 0
    return int("".join(map(str, Decimal(repr(value)).normalize().as_tuple().digits[:8])))


def _bounded(schema):
    """A schema whose bounds for numbers are exact ones: tighter than they were, where they were beyond."""
    for key, sign in (("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1), ("exclusiveMaximum", 1)):
        value = schema.get(key)
        if _is_number(value) and abs(value) > LARGEST:
            if (value > 0) != (sign > 0):
                raise ValueError(f"{key}: expected a number within ±2**53, found {shown(value)}")
            schema[key] = sign * LARGEST
    return schema


def forces_little(schema):
    """
    Whether no long text can follow from the schema letter by letter. The library would look for the tokens of it all
    at once, which takes seconds for a million letters.
    """
    for node in _nodes(schema):
        texts = [*_listed(node, "properties"), *_listed(node, "required"), *_listed(node, "enum"), node.get("const")]
        if node.keys() & {"pattern", "patternProperties"}:
            return False
        if max(len(json.dumps(text)) for text in texts) > LONGEST_FORCED:
            return False
        if _is_number(node.get("minLength")) and node["minLength"] > LONGEST_FORCED:
            return False
    return True
