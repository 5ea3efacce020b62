"""Random JSON schemas, and answers that are drawn token by token from what a grammar allows."""
import numpy as np

PATTERNS = ["^[a-z]{2,5}$", "^(foo|bar)-[0-9]+$", "^#[0-9a-fA-F]{6}$", "^\\d{4}-\\d{2}$", "[A-Z]"]
CLOSING = [b'"', b'"}', b'"]', b"\n"], [b"}", b"]", b"}\n", b"\n"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "hostname", "int64"]


def random_schema(chance, depth=3, definitions=()):
    """
    A JSON schema of what the grammars take.

    Args:
        chance (random.Random): Draws.
        depth (int): How deep objects and lists may be nested.
        definitions (Sequence[str]): What may be referred to.
    """
    kinds = [_text, _number, _integer, _choice, _constant, _simple]
    if depth:
        kinds += [random_object, _list, _union, _tagged] + [_reference] * bool(definitions)
    return chance.choice(kinds)(chance, depth, definitions)


def random_parameters(chance):
    """The parameters of a tool: an object's schema, with definitions or without; Qwen's list; or none."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice([None, {}, {"type": "object", "properties": {}}, []])
    if kind == 1:
        return [{"name": f"p{number}", "description": "...", "required": chance.random() < 0.5,
                 "schema": random_schema(chance, 1)} for number in range(chance.randint(1, 3))]
    if kind == 2:
        node = {"type": "object", "required": ["value"], "properties": {
            "value": random_schema(chance, 0), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
        return {**random_object(chance, 2, ["#/$defs/node"]), "$defs": {"node": node}}
    return random_object(chance, 3)


def random_object(chance, depth=3, definitions=()):
    """The schema of an object."""
    names = chance.sample(["location", "unit", "days", "城市", "a b", "\"quoted\"", "x", "list_of_things"],
                          chance.randint(1, 4))
    schema = {"type": "object",
              "properties": {name: random_schema(chance, depth - 1, definitions) for name in names},
              "required": [name for name in names if chance.random() < 0.6]}
    if chance.random() < 0.2:
        schema["additionalProperties"] = chance.choice([False, {"type": "integer"}])
    return schema


def _text(chance, depth, definitions):
    kind = chance.randrange(5)
    if kind == 0:
        return {"type": "string", "pattern": chance.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": chance.choice(FORMATS)}
    least = chance.randint(0, 5)
    return {"type": "string"} | ({"minLength": least, "maxLength": least + chance.randint(0, 20)} if kind < 4 else {})


def _number(chance, depth, definitions):
    low = chance.choice([-1000, -3.5, 0, 0.25, 10])
    return {"type": "number"} | chance.choice([
        {}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + 7.75},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 2}])


def _integer(chance, depth, definitions):
    low = chance.randint(-50, 50)
    return {"type": "integer"} | chance.choice([
        {}, {"minimum": low}, {"minimum": low, "maximum": low + chance.randint(0, 30)}, {"multipleOf": 7},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 5},
        {"minimum": -(2 ** 63), "maximum": 2 ** 63 - 1}, {"minimum": 0, "maximum": 1000, "multipleOf": 25}])


def _choice(chance, depth, definitions):
    return {"enum": chance.sample(["celsius", "fahrenheit", "北京", 1, 2.5, None, True, "with \"quotes\"", "a\nb",
                                   ["x"], {"k": 1}], chance.randint(1, 4))}


def _constant(chance, depth, definitions):
    return {"const": chance.choice(["fixed", 7, None, False, [1, 2], {"a": "b"}])}


def _simple(chance, depth, definitions):
    return {"type": chance.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}


def _list(chance, depth, definitions):
    least = chance.randint(0, 2)
    return {"type": "array", "items": random_schema(chance, depth - 1, definitions), "minItems": least,
            "maxItems": least + chance.randint(0, 3)}


def _union(chance, depth, definitions):
    return {"anyOf": [random_schema(chance, depth - 1, definitions) for _ in range(chance.randint(2, 3))]}


def _tagged(chance, depth, definitions):
    return {"oneOf": [{"type": "object", "required": ["kind", "value"], "properties": {
        "kind": {"const": kind}, "value": random_schema(chance, depth - 1, definitions)}} for kind in ("a", "b")]}


def _reference(chance, depth, definitions):
    return {"$ref": chance.choice(definitions)}


def draw(grammar, tokenizer, vocab_size, chance, most=600):
    """
    An answer of tokens drawn at random from those that a grammar allows.

    Tokens that close something are likelier, and the likelier the longer the answer is: most others go on with a text.

    Args:
        grammar (Grammar): At the beginning.
        tokenizer (QwenTokenizer): Of the vocabulary.
        vocab_size (int): The model's.
        chance (random.Random): Draws.
        most (int): Tokens.

    Returns:
        list[int].
    """
    ranks = tokenizer.mergeable_ranks
    closing = [np.array([ranks[token] for token in kind if token in ranks]) for kind in CLOSING]
    ids, logits = [], np.zeros(vocab_size, np.float32)
    while not grammar.is_over:
        assert len(ids) < most, tokenizer.decode(ids)
        logits[:] = 0
        grammar.mask(logits)
        allowed = np.flatnonzero(logits == 0)
        assert len(allowed) and len(allowed) + np.isneginf(logits).sum() == vocab_size
        pool = allowed
        if chance.random() < 0.2 + len(ids) / 200:
            kind = chance.choice(closing)
            shut = kind[logits[kind] == 0]
            pool = shut if len(shut) else allowed
        ids.append(int(pool[chance.randrange(len(pool))]))
        grammar.accept(ids[-1])
    return ids
