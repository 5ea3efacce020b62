"""What a grammar lets through is JSON that fits, and calls of the tools there are; strangers' schemas do no harm."""
import importlib.util
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.properties import tell, tried, values
from helpers.schemas import draw, random_object, random_parameters
from qwen_mindspore.common.files import cache_folder
from qwen_mindspore.generate.grammar import Grammars
from qwen_mindspore.generate.schema import parameters_schema, prepared
from qwen_mindspore.text.react import Open, ReactStream, Tool
from qwen_mindspore.text.tokenizer import QwenTokenizer

VALIDATOR = jsonschema.Draft202012Validator
NAMES = ["get", "get_weather", "搜索", 'a "b"/*\\']
WEATHER = {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}
DEMO = Path(cache_folder()) / "models/smollm2-135m-qwen-ms"


class Vocabulary:
    """A tokenizer, the size of a model that has it, and its grammars."""

    def __init__(self, path, vocab_size):
        self.tokenizer, self.vocab_size = QwenTokenizer(path), vocab_size
        self.ends = [self.tokenizer.im_end_id, self.tokenizer.eod_id]
        self.grammars = Grammars(self.tokenizer, vocab_size, self.ends)

    def allowed(self, grammar):
        """bool [vocab_size]"""
        logits = np.arange(self.vocab_size, dtype=np.float32)
        grammar.mask(logits)
        allowed = ~np.isneginf(logits)
        assert (logits[allowed] == np.flatnonzero(allowed)).all(), "what may stand keeps its logit"
        return allowed

    def takes(self, grammar, text):
        """How much of a text a grammar lets through, token by token."""
        taken = []
        for token in self.tokenizer.encode(text, allowed_special=set()):
            if grammar.is_over or not self.allowed(grammar)[token]:
                break
            grammar.accept(token)
            taken.append(token)
        return self.tokenizer.decode(taken)

    def drawn(self, grammar, chance):
        return self.tokenizer.decode(draw(grammar, self.tokenizer, self.vocab_size, chance))

    def steered(self, grammar, most, chance, begun=""):
        """A text of at most so many tokens, drawn from all that may stand, behind one that was begun where it may."""
        begun, ids, logits = self.tokenizer.encode(begun), [], np.empty(self.vocab_size, np.float32)
        while not grammar.is_over and len(ids) < most:
            logits[:] = 0
            grammar.mask(logits)
            is_begun = len(ids) < len(begun) and logits[begun[len(ids)]] == 0
            token = begun[len(ids)] if is_begun else int(chance.choice(np.flatnonzero(logits == 0)))
            ids.append(grammar.steer(token, most - len(ids) - 1))
            grammar.accept(ids[-1])
        return self.tokenizer.decode([token for token in ids if token not in self.ends])

    def may_end(self, grammar):
        return grammar.is_over or bool(self.allowed(grammar)[self.ends].all())


@pytest.fixture(scope="module")
def qwen():
    """The official vocabulary, with the rows of a released model."""
    return Vocabulary(Path(importlib.util.find_spec("dashscope").origin).parent / "resources/qwen.tiktoken", 151936)


@pytest.fixture(scope="module")
def tiny(tiny_hf):
    """Every byte is a token."""
    return Vocabulary(str(tiny_hf), 512)


@pytest.fixture(scope="module", params=["qwen", "demo", "tiny"])
def any_vocabulary(request):
    if request.param != "demo":
        return request.getfixturevalue(request.param)
    if not DEMO.is_dir():
        pytest.skip("the demo model is not made on this machine: bash scripts/demo_model.sh")
    return Vocabulary(DEMO, 49408)


def check(arguments, parameters):
    """Arguments are those of JSON that fits the schema, a tool's or any."""
    value = json.loads(arguments)
    schema = parameters_schema(parameters) if not isinstance(parameters, dict) else parameters or {}
    VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(value)
    return value


class TestTools:
    @pytest.mark.parametrize("seed", range(24))
    def test_any_draw_is_a_call_of_a_tool_with_arguments_that_fit(self, any_vocabulary, seed):
        chance = random.Random(seed)
        tools = [{"name": name, "parameters": random_parameters(chance)} for name in chance.sample(NAMES, 3)]
        choice, is_open = chance.choice(["required", tools[0]["name"]]), bool(seed % 2)
        text = any_vocabulary.drawn(any_vocabulary.grammars.react(tools, choice, is_open), chance)
        stream = ReactStream(is_open)
        events = stream.put(text) + stream.end()
        parameters = {tool["name"]: tool["parameters"] for tool in tools}[stream.name]
        assert choice in ("required", stream.name)
        value = check("".join(event.text for event in events if event.kind == "arguments"), parameters)
        assert isinstance(value, dict)

    @pytest.mark.parametrize("is_open, label", [(False, "Thought:"), (True, ""), (Open.THOUGHT, "")])
    @pytest.mark.parametrize("choice, text, taken", [
        ("auto", ' Look.\nAction: get_weather\nAction Input: {"city": "Oslo", "days": 3}\n', None),
        ("auto", " First:\n\n1. look\n2. Act.\nAction: now\nAction Input: {}\n", None),
        ("auto", " It is so.\nFinal Answer: 22\n\nAction: now", None),
        ("auto", " x\nAction: nowhere", " x\nAction: now"),
        ("auto", " x\nObservation: forged", " x\nObservation"),
        ("auto", ' x\nAction: get_weather\nAction Input: {"days": 3', ' x\nAction: get_weather\nAction Input: {"'),
        ("auto", ' x\nAction: get_weather\nAction Input: {"city":  "',
         ' x\nAction: get_weather\nAction Input: {"city": '),
        ("auto", ' x\nAction: get_weather\nAction Input: {\n    "city": "Oslo"\n}\n', None),
        ("auto", ' x\nAction: get_weather\nAction Input: {"city": "a", "other',
         ' x\nAction: get_weather\nAction Input: {"city": "a", "'),
        ("required", ' Look.\nAction: get_weather\nAction Input: {"city": "Oslo"}\n', None),
        ("required", " x\nFinal Answer: 22", " x\n"),
        ("required", " " + "x y " * 150 + "\n", " " + "x y " * 99 + "x y"),
        ("now", "\nAction: now\nAction Input: {}\n", None),
        ("now", " x\nAction: get", " x\nAction:")])
    def test_what_may_be_said_by_each_choice(self, tiny, is_open, label, choice, text, taken):
        grammar = tiny.grammars.react([WEATHER, {"name": "now"}], choice, is_open)
        label = label if text.startswith("\n") or not label else "Thought:"
        text = text if label == "" or text.startswith(" ") else f" {text}"
        expected = text if taken is None else taken
        assert tiny.takes(grammar, label + text).rstrip(" ") == (label + expected).rstrip(" ")
        assert grammar.is_over == (text.endswith("}\n") and taken is None)
        assert tiny.may_end(grammar) == (grammar.is_over or "Final Answer: " in expected)

    def test_a_token_may_reach_over_the_parts_as_qwens_do(self, qwen):
        text = 'Thought: I look — 天气.\nAction: get_weather\nAction Input: {"city": "Boston \\"x\\"", "days": 3}\n'
        grammar = qwen.grammars.react([WEATHER], "auto")
        assert qwen.takes(grammar, text) == text and grammar.is_over

    def test_no_control_token_and_no_row_beyond_the_vocabulary_may_stand_in_a_text(self, qwen):
        grammar = qwen.grammars.react([WEATHER])
        for text in ("Thought:", " x", "\nFinal Answer: x"):
            assert qwen.takes(grammar, text) == text
            allowed = qwen.allowed(grammar)
            assert allowed[:qwen.tokenizer.eod_id].any() and not allowed[qwen.tokenizer.vocab_size:].any()
            control = np.flatnonzero(allowed[qwen.tokenizer.eod_id:]) + qwen.tokenizer.eod_id
            assert set(control) == (set(qwen.ends) if "Final" in text else set())

    def test_a_name_may_be_anything_on_a_line(self, tiny):
        for name in (*NAMES, "<|im_end|>", "auto()", "🚀", "a/*b*/", "%json {}"):
            text = f"\nAction: {name}\nAction Input: {{}}\n"
            assert tiny.takes(tiny.grammars.react([{"name": name}], name, True), text) == text

    @pytest.mark.parametrize("tools, choice, is_open", [
        ([], "auto", False), (None, "none", False), ([WEATHER], "none", False), ([WEATHER], "auto", Open.ANSWER),
        ([WEATHER], "required", Open.ARGUMENTS)])
    def test_where_anything_may_be_said_there_is_none(self, tiny, tools, choice, is_open):
        assert tiny.grammars.react(tools, choice, is_open) is None

    @pytest.mark.parametrize("tools, choice, is_open, message", [
        ([WEATHER], "other", False, "tool_choice: expected one of auto, required, none, get_weather, found 'other'"),
        ([WEATHER], None, False, "tool_choice: expected one of"),
        ([], "required", False, "tool_choice: expected 'auto' or 'none' without tools, found 'required'"),
        ([WEATHER], "get_weather", Open.ANSWER, "tool_choice: expected 'auto' or 'none' behind an answer that was "),
        ([{"name": f"f{i}"} for i in range(129)], "auto", False, "tools: expected up to 128, found 129"),
        ([WEATHER, {"name": "f", "parameters": {"not": {}}}], "auto", False,
         "parameters of f: not: not supported in a grammar; leave it out"),
        ([{"name": "f", "parameters": [5]}], "auto", False, "parameters of f: parameter 0: expected an object with a "),
        ([{"name": f"f{i}", "parameters": {"description": "x" * 60000}} for i in range(5)], "auto", False,
         "tools: expected up to 262144 characters of schemas")])
    def test_what_is_asked_wrongly_is_named(self, tiny, tools, choice, is_open, message):
        with pytest.raises(ValueError) as caught:
            tiny.grammars.react(tools, choice, is_open)
        assert message in str(caught.value)
        tell(caught.value, ["tool_choice", "tools", "parameters"])

    @pytest.mark.parametrize("parameters", [None, {}, [], {"type": "object", "properties": {}}, {"properties": {}}])
    def test_without_parameters_arguments_are_empty(self, tiny, parameters):
        grammar = tiny.grammars.react([Tool("f", "", parameters)], "f", True)
        assert tiny.takes(grammar, '\nAction: f\nAction Input: {"') == "\nAction: f\nAction Input: {"

    def test_qwens_list_is_a_schema(self):
        entries = [{"name": "q", "description": "d", "required": True, "schema": {"type": "string"}},
                   {"name": "n", "type": "integer", "description": "e", "required": False}]
        assert parameters_schema(entries) == {
            "type": "object", "required": ["q"], "additionalProperties": False,
            "properties": {"q": {"type": "string"}, "n": {"type": "integer", "description": "e"}}}

    @pytest.mark.parametrize("schema, is_closed", [
        ({"properties": {"a": {}}}, True), ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"type": "object"}, False), ({"properties": {"a": {}}, "anyOf": [{}]}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, False), ({"properties": {"a": {}}, "$ref": "#/$defs/x"}, False)])
    def test_an_object_that_lists_its_properties_holds_no_others(self, schema, is_closed):
        assert (parameters_schema(schema).get("additionalProperties") is False) == is_closed
        assert (parameters_schema({"properties": {"b": schema}})["properties"]["b"].get("additionalProperties")
                is False) == is_closed

    @pytest.mark.parametrize("use, is_closed", [
        ({"$ref": "#/$defs/x"}, True), ({"$ref": "#/$defs/x", "properties": {"b": {}}}, False),
        ({"allOf": [{"$ref": "#/$defs/x"}, {"properties": {"b": {}}}]}, False)])
    def test_a_definition_that_is_a_part_of_others_stays_open(self, use, is_closed):
        closed = parameters_schema({"properties": {"a": use}, "$defs": {"x": {"properties": {"c": {}}}}})
        assert (closed["$defs"]["x"].get("additionalProperties") is False) == is_closed


    @pytest.mark.parametrize("by_reference", [False, True])
    @pytest.mark.parametrize("keyword, first, second, are_closed", [
        ("anyOf", {}, {}, True), ("oneOf", {}, {}, False),
        ("oneOf", {"kind": {"const": "a"}}, {"kind": {"const": "b"}}, True),
        ("oneOf", {"kind": {"const": "a"}}, {"kind": {"const": "a"}}, False),
        ("oneOf", {"kind": {"const": "a"}}, {"sort": {"const": "b"}}, False)])
    def test_objects_to_choose_from_are_closed_where_no_two_can_fit(
            self, keyword, first, second, are_closed, by_reference):
        parts = {name: {"properties": {**tag, name: {}}, "required": list(tag)}
                 for name, tag in (("x", first), ("y", second))}
        use = [{"$ref": f"#/$defs/{name}"} for name in parts] if by_reference else list(parts.values())
        schema = parameters_schema({"properties": {"a": {keyword: use}}, "$defs": parts if by_reference else {}})
        found = list(schema["$defs"].values()) if by_reference else schema["properties"]["a"][keyword]
        assert [part.get("additionalProperties") is False for part in found] == [are_closed] * 2


CITY = {"type": "object", "required": ["city", "days"], "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "array", "items": {
        "type": "object", "required": ["a", "b"], "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}}}}}}


class TestEnds:
    @pytest.mark.parametrize("seed", range(16))
    def test_a_call_comes_to_its_end_in_time_whatever_is_drawn(self, any_vocabulary, seed):
        chance = random.Random(seed)
        tools = [{"name": name, "parameters": random_parameters(chance)} for name in chance.sample(NAMES, 3)]
        grammar = any_vocabulary.grammars.react(tools, "required", bool(seed % 2))
        text = any_vocabulary.steered(grammar, chance.choice([300, 400]), chance)
        stream = ReactStream(bool(seed % 2))
        events = stream.put(text) + stream.end()
        assert grammar.is_over
        check("".join(event.text for event in events if event.kind == "arguments"),
              {tool["name"]: tool["parameters"] for tool in tools}[stream.name])

    @pytest.mark.parametrize("most", [40, 41, 42, 43, 60, 90, 120])
    def test_what_is_open_is_closed_and_what_is_required_is_there(self, tiny, most):
        for begun in ("", '{"', '{"city": "', '{"city": "abc\\', '{"city": "a", "days": 1', '{"city": "天',
                      '{"city": "a", "days": 1, "more": [{"a": true, "b": "x"}'[:most - 10]):
            grammar = tiny.grammars.json_schema(CITY)
            text = tiny.steered(grammar, most, random.Random(most), begun)
            assert grammar.is_over and text.startswith(begun)
            check(text, CITY)

    def test_nothing_is_hastened_while_there_is_room(self, tiny):
        text = '{"city": "' + "x" * 60 + '", "days": 12}'
        for most in (len(text), len(text) + 1, 4000):
            assert tiny.steered(tiny.grammars.json_schema(CITY), most, random.Random(0), text) == text
        cut = tiny.steered(tiny.grammars.json_schema(CITY), len(text) - 5, random.Random(0), text)
        assert json.loads(cut)["city"] == "x" * len(json.loads(cut)["city"]) and len(json.loads(cut)["city"]) >= 50

    def test_where_there_is_too_little_room_from_the_beginning_it_is_cut(self, tiny):
        grammar = tiny.grammars.json_schema({"const": "a constant"})
        assert tiny.steered(grammar, 5, random.Random(0)) == '"a co' and not grammar.is_over

    @pytest.mark.parametrize("begun, is_whole", [
        ("Thought: I think", False), ("Thought: x\nFinal Answer: \nAction Input: ", False),
        ('Thought: x\nAction: get_weather\nAction Input: {"city": "', True)])
    def test_where_no_call_has_to_come_calls_alone_are_brought_to_their_end(self, tiny, begun, is_whole):
        grammar = tiny.grammars.react([WEATHER], "auto")
        text = tiny.steered(grammar, len(begun) + 20, random.Random(1), begun + " x" * 10)
        assert text == begun + " x" * 10 if not is_whole else text.endswith('"}\n')
        assert grammar.is_over == is_whole

    @pytest.mark.parametrize("schema", [
        {"type": "integer", "multipleOf": 7, "minimum": 10}, {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": "[A-Z]"}, {"type": "string", "minLength": 30}, {"type": "array", "minItems": 9},
        {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}], "$defs": {"n": {"type": "object", "required": ["n"],
         "properties": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}}}])
    def test_ways_to_the_end_are_found_where_they_are_not_plain(self, tiny, schema):
        for seed in range(5):
            grammar = tiny.grammars.json_schema(schema)
            check(tiny.steered(grammar, 60, random.Random(seed)), schema)
            assert grammar.is_over


class TestSchemas:
    @pytest.mark.parametrize("seed", range(100, 112))
    def test_any_draw_fits(self, any_vocabulary, seed):
        chance = random.Random(seed)
        schema = {**random_object(chance, 2), "additionalProperties": False}
        check(any_vocabulary.drawn(any_vocabulary.grammars.json_schema(schema), chance), schema)

    def test_json_is_an_object(self, tiny):
        text = '{"a": [1, -2.5e3, {"b": null}], "ü": "\\n\\u0000"}'
        grammar = tiny.grammars.json_object()
        assert tiny.takes(grammar, text) == text and grammar.is_over
        assert tiny.takes(tiny.grammars.json_object(), "[1]") == ""

    def test_a_number_may_end_or_go_on(self, tiny):
        grammar = tiny.grammars.json_schema({"type": "integer", "minimum": 12})
        assert tiny.takes(grammar, "1") == "1" and not tiny.may_end(grammar)
        assert tiny.takes(grammar, "7") == "7" and tiny.may_end(grammar) and not grammar.is_over
        grammar.accept(tiny.ends[1])
        assert grammar.is_over

    def test_a_schema_may_be_true(self, tiny):
        assert tiny.takes(tiny.grammars.json_schema(True), '[{"a": 1}]') == '[{"a": 1}]'

    @pytest.mark.parametrize("schema, message", [
        (False, "schema: expected a JSON schema, an object, found False"), ([], "schema: expected a JSON schema"),
        ({"type": "hiccup"}, "schema: Invalid type: hiccup"),
        ({"not": {}, "if": {}}, "schema: if, not: not supported in a grammar; leave it out"),
        ({"uniqueItems": True}, "uniqueItems: not supported"), ({"contains": {}}, "contains: not supported"),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "schema: oneOf constraints are not supported"),
        ({"$ref": "http://example.org/x"}, "is not present"), ({"$ref": "#/$defs/x"}, "schema: "),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "schema: Unsatisfiable"),
        ({"type": "string", "pattern": "(?=a)"}, "schema: regex parse error: look-around"),
        ({"type": "string", "pattern": "["}, "schema: regex parse error: unclosed character class"),
        ({"type": "string", "pattern": "("}, "schema: regex parse error: unclosed group"),
        ({"enum": []}, "schema: "), ({"properties": 5}, "schema: "), ({"required": 5}, "schema: "),
        ({"minimum": 2 ** 63}, "minimum: expected a number within ±2**53"),
        ({"maximum": -10 ** 400}, "maximum: expected a number within ±2**53"),
        ({"type": "object", "minProperties": 2}, "minProperties: expected no more than there are required"),
        ({"const": float("nan")}, "not JSON"), ({"const": {1}}, "not JSON"), ({"const": "\ud800"}, "schema: ")])
    def test_what_no_grammar_can_be_made_of_is_named(self, tiny, schema, message):
        with pytest.raises(ValueError) as caught:
            tiny.grammars.json_schema(schema)
        assert message in str(caught.value)
        tell(caught.value, ["schema"])

    def test_what_is_prepared_says_no_more_than_the_schema(self):
        schema = {"x-guidance": {"lenient": True}, "properties": {
            "format": {"format": "int64", "minimum": -(2 ** 63), "maximum": 2 ** 63 - 1},
            "const": {"const": {"format": "int64"}}, "list": {"items": {"format": "date"}}}}
        assert prepared(schema) == {"properties": {
            "format": {"minimum": -(2 ** 53), "maximum": 2 ** 53}, "const": {"const": {"format": "int64"}},
            "list": {"items": {"format": "date"}}}}


def within(schema):
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubled(keyword):
    """A schema whose references stand for 2**40 others."""
    definitions = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, "d40": {"type": "string"}}}


HOSTILE = {
    "large": {"enum": [f"value {number}" for number in range(10000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
    "many required": {"type": "object", "required": [f"p{i}" for i in range(6000)]},
    "a long constant": {"const": "x" * 60000}, "a long name": {"type": "object", "required": ["x" * 60000]},
    "deep": nested(1000), "as deep as may be": nested(60),
    "itself": {"$ref": "#"}, "in a circle": {"$ref": "#/$defs/a", "$defs": {
        "a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a part of itself": {"type": "object", "allOf": [{"$ref": "#"}]},
    "without an end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "2**40 unions": doubled("anyOf"), "2**40 intersections": doubled("allOf"), "2**40 items": doubled("prefixItems"),
    "10**10 intersections": {"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {
        "type": "string", "minLength": i}}} for j in range(10)]} for i in range(10)]},
    "a pattern of 10**6 letters": within({"pattern": "^(a{1000}){1000}$"}),
    "a pattern of many ways": within({"pattern": "^(a?){500}a{500}$"}),
    "a pattern that looks far back": within({"pattern": "x.{1000}y"}),
    "a long pattern": within({"pattern": "a|" * 5000}),
    "letters of all kinds": within({"pattern": "^[\\p{L}\\w]{1,10000}$"}),
    "10**9 items": within({"type": "array", "minItems": 10 ** 9}),
    "10**30 items": {"type": "array", "minItems": 10 ** 30},
    "10**9 letters": within({"type": "string", "minLength": 10 ** 9, "pattern": "^a*$"}),
    "up to 10**9 letters": within({"type": "string", "maxLength": 10 ** 9}),
    "10**6 items in three levels": within({"minItems": 100, "items": {"minItems": 100, "items": {"minItems": 100}}}),
    "a large divisor": within({"type": "integer", "multipleOf": 999983}),
    "many divisors": {"properties": {f"p{i}": {"type": "integer", "multipleOf": 9973 + i} for i in range(1000)}},
}


KEYWORDS = [
    "$defs", "$ref", "additionalProperties", "allOf", "anyOf", "const", "definitions", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
    "minProperties", "minimum", "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems",
    "properties", "required", "type", "uniqueItems", "x-guidance"]
TYPES = ["object", "array", "string", "integer", "number", "null", "boolean", ["object", "null"], "#/$defs/a", "#",
         "date", "^a{2,3}$"]


class TestStrangers:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_hostile_schema_is_refused_in_a_line_or_bounded_in_time(self, qwen, name):
        qwen.grammars.prepare()
        start = time.process_time()
        try:
            grammar = qwen.grammars.json_schema(HOSTILE[name])
            qwen.takes(grammar, '{"a": "aaaaaaaaaaaa')
        except (ValueError, RuntimeError) as error:
            tell(error, ["schema", "grammar"])
        assert time.process_time() - start < 2

    @tried(200)
    @given(st.recursive(st.booleans() | values(), lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS), inner | st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["a", "b"]), inner, max_size=2) | st.sampled_from(TYPES) | values(), max_size=4),
        max_leaves=6))
    def test_anything_is_a_schema_or_refused_in_a_line(self, tiny, schema):
        for make in (tiny.grammars.json_schema, lambda it: tiny.grammars.react([Tool("f", "", it)], "f")):
            try:
                grammar = make(schema)
            except ValueError as error:
                tell(error, ["schema", "parameters of f"])
            else:
                assert tiny.allowed(grammar).any()

    def test_what_gets_too_complex_on_the_way_ends_this_answer_in_a_line(self, tiny):
        grammar = tiny.grammars.json_object()
        with pytest.raises(RuntimeError, match="token 65: it can't stand here, by the grammar of the answer"):
            grammar.accept(65)


class TestGrammars:
    def test_each_answer_has_its_own(self, tiny):
        first, second = (tiny.grammars.json_schema({"const": "ab"}) for _ in range(2))
        assert tiny.takes(first, '"a') == '"a' and tiny.takes(second, '"ab"') == '"ab"'
        assert second.is_over and not first.is_over and tiny.takes(first, "b") == "b"

    def test_they_are_made_and_asked_in_any_thread(self, tiny_hf):
        fresh = Vocabulary(str(tiny_hf), 512)

        def ask(number):
            text = f'{{"a{number % 5}": {number}}}'
            grammar = fresh.grammars.json_schema({"type": "object", "required": [f"a{number % 5}"]})
            return fresh.takes(grammar, text) == text and grammar.is_over

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(64)))

    def test_a_model_may_have_fewer_rows_than_the_vocabulary_has_tokens(self, tiny_hf):
        few = Vocabulary(str(tiny_hf), 259)
        assert few.takes(few.grammars.json_object(), '{"a": 1}') == '{"a": 1}'

    def test_without_the_package_it_is_named(self, tiny, monkeypatch):
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(ValueError, match="a grammar of answers needs llguidance: pip install 'qwen-mindspore"):
            Grammars(tiny.tokenizer, 512, tiny.ends).json_object()
