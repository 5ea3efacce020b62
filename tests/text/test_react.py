"""Prompts with tools are those of Qwen's server, byte for byte; answers come apart into thought, call and content."""
import importlib.util
import json
import unicodedata
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import DATA
from helpers.properties import python_values, tell, texts, tried, values
from qwen_mindspore.text.chatml import DEFAULT_SYSTEM, write_prompt
from qwen_mindspore.text.react import (
    INSTRUCTION,
    SENTENCE,
    Event,
    MessageError,
    Open,
    Parsed,
    ReactStream,
    Tool,
    parse_response,
    react_messages,
    read_tools,
)
from qwen_mindspore.text.tokenizer import IM_END, IM_START, QwenTokenizer

GOLDEN = json.loads((DATA / "tools/react.json").read_text(encoding="utf-8"))
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {
    "city": {"type": "string", "description": "城市"}}}}
PIECES = ["Thought:", " ", "\n", "Action:", "Action Input:", "Observation:", "Final Answer:", "a", "{}", "\n\n", "\r",
          "\nAction: w\nAction Input: {}", "\nFinal Answer: ", "n" * 255]
QUESTION = {"role": "user", "content": "q"}


@pytest.fixture(scope="module")
def tokenizer():
    return QwenTokenizer(Path(importlib.util.find_spec("dashscope").origin).parent / "resources/qwen.tiktoken")


def prompt_of(messages, is_open):
    """As the reference writes it."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    text = "\n".join(f"{IM_START}{message['role']}\n{message['content']}{IM_END}" for message in messages)
    return text.removesuffix(IM_END) if is_open else f"{text}\n{IM_START}assistant\n"


def contents(messages, tools=(WEATHER,), **options):
    """[content, ...] of the messages that are made of some."""
    return [message["content"] for message in react_messages(messages, tools, **options)[0]]


def wrapped(function):
    return {"type": "function", "function": function}


def function_call(name="weather", arguments="{}", content=None):
    return {"role": "assistant", "content": content, "function_call": {"name": name, "arguments": arguments}}


def tool_calls(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in calls]}


def result(content, id=None):
    return {"role": "function", "name": "weather", "content": content} if id is None else {
        "role": "tool", "tool_call_id": id, "content": content}


class TestGolden:
    @pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["name"])
    def test_a_prompt_is_that_of_qwens_server(self, tokenizer, case):
        if "error" in case:
            with pytest.raises(MessageError):
                react_messages(case["messages"], case["functions"])
            return
        messages, is_open = react_messages(case["messages"], case["functions"])
        text, ids = write_prompt(tokenizer, messages, continue_last=bool(is_open))
        assert text == case["prompt"] == prompt_of(messages, is_open)
        assert ids == tokenizer.encode(case["prompt"])

    @pytest.mark.parametrize("case", GOLDEN["answers"], ids=lambda case: case["text"])
    def test_an_answer_is_read_as_by_qwens_server(self, case):
        parsed = parse_response(case["text"])
        call = case["function_call"] or {"name": None, "arguments": None}
        assert (parsed.content, parsed.name, parsed.arguments) == (case["content"], call["name"], call["arguments"])

    @pytest.mark.parametrize("case", GOLDEN["answers"][:-1], ids=lambda case: case["text"])
    def test_a_stream_of_it_says_the_same(self, case):
        """But for two final answers: the first has been told when the second comes."""
        events = joined(case["text"], case["text"].startswith(" "))
        call = case["function_call"] or {"name": None, "arguments": None}
        assert (events.get("call"), events.get("arguments")) == (call["name"], call["arguments"])
        assert events["thought" if call["name"] else "content"] == case["content"]


class TestInstruction:
    def test_qwens_names_come_first(self):
        both = {**WEATHER, "name_for_model": "m", "name_for_human": "h", "description_for_model": "d"}
        (tool,) = read_tools([both])
        assert tool == Tool("m", "d", WEATHER["parameters"], "h", "functions")
        assert 'm: Call this tool to interact with the h API. What is the h API useful for? d Parameters: {"type"' in (
            contents([QUESTION], [both])[0])

    @pytest.mark.parametrize("function, text", [
        ({"name": "f"}, "f: Call this tool to interact with the f API. What is the f API useful for?  Parameters: {}"),
        ({"name": "f", "description": None}, "useful for?  Parameters: {}\n"),
        ({"name": "f", "parameters": None}, " Parameters: null\n"),
        ({"name_for_model": "f"}, "f: Call this tool to interact with the  API."),
        ({"name": "f", "description": "{a} {name}", "parameters": {"b": 1, "a": [1.5, True, "ü"]}},
         'useful for? {a} {name} Parameters: {"b": 1, "a": [1.5, true, "ü"]}\n')])
    def test_what_a_function_lacks_is_left_empty_and_its_json_is_written_as_it_stands(self, function, text):
        assert text in contents([QUESTION], [function])[0]

    def test_both_generations_make_one_prompt(self):
        assert contents([QUESTION], [wrapped(WEATHER)]) == contents([QUESTION], [WEATHER])
        assert [tool._replace(api="functions") for tool in read_tools([wrapped(WEATHER)])] == read_tools([WEATHER])

    def test_the_sentence_comes_where_the_description_lacks_it(self):
        with_it = {**WEATHER, "name": "other", "description": f"Says it.{SENTENCE}"}
        (text,) = contents([QUESTION], [WEATHER, with_it], format_sentence=True)
        assert text.count(SENTENCE) == 2 and f"}}}}}}{SENTENCE}\n\nother: " in text
        assert SENTENCE not in contents([QUESTION], [WEATHER])[0]

    def test_it_precedes_the_last_question_that_has_an_answer_as_in_qwens_server(self):
        turns = [QUESTION, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
        begins = INSTRUCTION.partition("{")[0]
        assert [text.startswith(begins) for text in contents(turns)] == [True, False, False]
        assert [text.startswith(begins) for text in contents([*turns, function_call(), result("x")])] == [
            False, False, True, False]

    def test_or_always_the_last_so_that_a_prompt_begins_alike_behind_a_result(self):
        turns = [QUESTION, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
        before = contents(turns, placement="last_query")
        assert contents([*turns, function_call(), result("x")], placement="last_query")[:3] == before
        assert before[2].endswith("Begin!\n\nQuestion: r") and before[0] == "q"

    @pytest.mark.parametrize("tools", [None, [], ()])
    def test_without_tools_there_is_none(self, tools):
        assert contents([QUESTION, {"role": "assistant", "content": "a"}, QUESTION], tools) == ["q", "a", "q"]

    def test_another_placement_is_refused(self):
        with pytest.raises(ValueError, match="placement: expected one of qwen, last_query, found 'first'"):
            react_messages([QUESTION], placement="first")

    @pytest.mark.parametrize("tools, param, message", [
        ({}, "tools", "expected a list, found {}"),
        ([5], "tools[0]", "expected an object, found 5"),
        ([{}], "functions[0].name", "expected a name on one line of up to 256 characters, found None"),
        ([{"name": "a\nb"}], "functions[0].name", r"found 'a\\nb'"),
        ([{"name": " a"}], "functions[0].name", "found ' a'"),
        ([{"name": ""}], "functions[0].name", "found ''"),
        ([{"name": "n" * 257}], "functions[0].name", "expected a name on one line"),
        ([{"name": "\ud800"}], "functions[0].name", "expected a name on one line"),
        ([WEATHER, {"name": "b", "description": 5}], "functions[1].description", "expected text, found 5"),
        ([{"name": "b", "parameters": "x"}], "functions[0].parameters", "expected a JSON schema, found 'x'"),
        ([{"name": "b", "parameters": {"a": {1}}}], "functions[0].parameters", "expected JSON: "),
        ([wrapped(None)], "tools[0].function", "expected an object, found None"),
        ([wrapped({})], "tools[0].function.name", "expected a name"),
        ([{"type": "code_interpreter"}], "tools[0].type", "expected 'function', found 'code_interpreter'"),
        ([WEATHER, WEATHER], "functions[1]", "expected another name, found 'weather' again")])
    def test_what_is_no_tool_is_named(self, tools, param, message):
        with pytest.raises(MessageError, match=message.replace("[", r"\[").replace("{", r"\{")) as caught:
            read_tools(tools)
        assert caught.value.param == param
        tell(caught.value, [param])


class TestMessages:
    def test_several_calls_are_as_those_one_after_another(self):
        calls = tool_calls(("1", "weather", '{"city": "a"}'), ("2", "weather", '{"city": "b"}'), content="Look.")
        together = [QUESTION, calls, result("B", "2"), result("A", "1")]
        apart = [QUESTION, function_call(arguments='{"city": "a"}', content="Look."), result("A"),
                 function_call(arguments='{"city": "b"}'), result("B")]
        assert react_messages(together, [WEATHER]) == react_messages(apart, [WEATHER])
        assert contents(together)[1] == (
            'Thought: Look.\nAction: weather\nAction Input: {"city": "a"}\nObservation: A\n'
            'Thought: \nAction: weather\nAction Input: {"city": "b"}\nObservation: B\nThought:')

    def test_results_find_their_calls_by_id(self):
        calls = tool_calls(("1", "a", "{}"), ("2", "b", "{}"))
        assert contents([QUESTION, calls, result("A", "1"), result("B", "2")]) == contents(
            [QUESTION, calls, result("B", "2"), result("A", "1")])
        assert contents([QUESTION, calls, result("B", "2"), {"role": "tool", "content": "A"}]) == contents(
            [QUESTION, calls, result("A", "1"), result("B", "2")])

    def test_several_users_in_a_row_are_joined_but_for_functions(self):
        users = [QUESTION, {"role": "user", "content": "r"}]
        assert contents(users, None) == ["q\nr"]
        assert contents(users, [wrapped(WEATHER)])[0].endswith("Question: q\nr")
        with pytest.raises(MessageError, match=r"^messages\[1\].role: expected an assistant's message after a user's"):
            react_messages(users, [WEATHER])

    @pytest.mark.parametrize("content, text", [
        (None, ""), ("\n\n a \n", " a"), ("", ""), ([], ""),
        ([{"type": "text", "text": "\na"}, {"type": "text", "text": "b "}], "ab")])
    def test_a_content_is_text_its_parts_or_none_without_newlines_around_it(self, content, text):
        assert contents([{"role": "user", "content": content}], None) == [text]
        call = [QUESTION, function_call(), result(content)]
        assert contents(call)[-1].endswith(f"Observation: {text}\nThought:")

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_system_messages_are_the_first_and_with_functions_the_only_one(self, role):
        system = {"role": role, "content": "\ns\n"}
        assert react_messages([system, QUESTION])[0] == [{"role": "system", "content": "s"}, QUESTION]
        assert react_messages([QUESTION])[0] == [QUESTION]
        joined = [{"role": "system", "content": "s\nt"}, QUESTION]
        assert react_messages([system, {"role": "system", "content": "t "}, QUESTION])[0] == joined
        for messages, tools in (([system, system, QUESTION], [WEATHER]), ([QUESTION, system], ())):
            with pytest.raises(MessageError, match=f"expected the {role} message to be the first and the only one"):
                react_messages(messages, tools)

    def test_a_system_message_alone_lets_the_model_begin_unless_there_are_tools(self):
        system = {"role": "system", "content": "Say hello."}
        assert react_messages([system]) == ([system], Open.NO)
        for tools in ([WEATHER], [wrapped(WEATHER)]):
            with pytest.raises(MessageError, match="expected at least one user's message, found none"):
                react_messages([system], tools)

    @pytest.mark.parametrize("last, expected", [
        ([], Open.NO), ([{"role": "assistant", "content": "a"}], Open.ANSWER),
        ([function_call()], Open.ARGUMENTS), ([function_call(), result("x")], Open.THOUGHT),
        ([tool_calls(("1", "a", "{}")), result("x", "1")], Open.THOUGHT),
        ([function_call(), result("x"), QUESTION], Open.NO)])
    def test_the_model_goes_on_with_what_is_not_a_users(self, last, expected):
        assert react_messages([QUESTION, *last], [WEATHER])[1] is expected
        assert bool(expected) == (expected is not Open.NO)

    def test_arguments_may_be_an_object(self):
        assert contents([QUESTION, function_call(arguments={"city": "北京"})])[1].endswith('Input: {"city": "北京"}')

    @pytest.mark.parametrize("messages, param", [
        (None, "messages"), ([], "messages"), ({}, "messages"), ([5, QUESTION], "messages[0].role"),
        ([{}], "messages[0].role"), ([{"role": "bot"}], "messages[0].role"), ([{"role": ["user"]}], "messages[0].role"),
        ([{"role": "assistant", "content": "a"}], "messages"),
        ([{"role": "assistant", "content": "a"}, QUESTION], "messages[0].role"),
        ([result("x"), QUESTION], "messages[0].role"), ([QUESTION, result("x")], "messages[1].role"),
        ([QUESTION, result("x", "1")], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"), ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
        ([QUESTION, {"role": "assistant", "function_call": {}}], "messages[1].function_call.name"),
        ([QUESTION, {"role": "assistant", "function_call": "f"}], "messages[1].function_call"),
        ([QUESTION, function_call(arguments=5)], "messages[1].function_call.arguments"),
        ([QUESTION, {"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls"),
        ([QUESTION, {"role": "assistant", "tool_calls": [5]}], "messages[1].tool_calls[0]"),
        ([QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls[0].function"),
        ([QUESTION, {**tool_calls(("1", "a", "{}")), **function_call()}], "messages[1].function_call"),
        ([QUESTION, tool_calls(("1", "a", "{}"))], "messages[1].tool_calls[0]"),
        ([QUESTION, tool_calls(("1", "a", "{}")), QUESTION], "messages[1].tool_calls[0]"),
        ([QUESTION, tool_calls(("1", "a", "{}")), result("x", "2")], "messages[2].tool_call_id"),
        ([QUESTION, tool_calls(("1", "a", "{}"), ("2", "a", "{}")), {"role": "tool", "content": "x"}],
         "messages[2].tool_call_id")])
    def test_what_is_no_conversation_is_named(self, messages, param):
        with pytest.raises(MessageError) as caught:
            react_messages(messages, [wrapped(WEATHER)])
        assert caught.value.param == param
        tell(caught.value, [param])

    @tried(300)
    @given(st.lists(st.fixed_dictionaries({}, optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "function", "tool"]) | texts(),
        "content": st.none() | texts() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts()}),
                                                  max_size=2) | values(),
        "function_call": st.none() | st.fixed_dictionaries({"name": texts(), "arguments": texts()}) | values(),
        "tool_calls": st.none() | st.lists(st.fixed_dictionaries({"id": texts(), "function": st.fixed_dictionaries(
            {"name": texts(), "arguments": texts()}) | values()}) | values(), max_size=3) | values(),
        "tool_call_id": texts() | values()}) | python_values(), max_size=6) | python_values(),
        st.lists(st.just(WEATHER) | st.just(wrapped(WEATHER)) | st.fixed_dictionaries({}, optional={
            "name": texts(), "parameters": python_values(), "description": texts() | values(),
            "function": values(), "type": values()}) | python_values(), max_size=3) | python_values())
    def test_anything_is_a_conversation_or_named(self, messages, tools):
        try:
            written, is_open = react_messages(messages, tools)
        except MessageError as error:
            tell(error, [error.param])
            return
        roles = [message["role"] for message in written if message["role"] != "system"] or ["user"]
        assert roles == [("user", "assistant")[number % 2] for number in range(len(roles))]
        assert bool(is_open) == (roles[-1] == "assistant")
        assert all(isinstance(message["content"], str) for message in written)


class TestContinuing:
    def test_the_last_message_stays_open(self, tokenizer):
        messages = [QUESTION, {"role": "assistant", "content": "Roses are"}]
        text, ids = write_prompt(tokenizer, messages, continue_last=True)
        assert text == prompt_of(messages, True) and ids == tokenizer.encode(text)
        assert write_prompt(tokenizer, messages)[0] == text + f"{IM_END}\n{IM_START}assistant\n"

    def test_older_turns_give_way_to_it(self, tokenizer):
        turn = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "answered"}]
        open_turn = [QUESTION, {"role": "assistant", "content": "long " * 50}]
        whole = write_prompt(tokenizer, [*turn, *open_turn], continue_last=True)
        alone = write_prompt(tokenizer, open_turn, continue_last=True)
        for most, expected in ((len(whole[1]), whole), (len(whole[1]) - 1, alone), (1, alone)):
            assert write_prompt(tokenizer, [*turn, *open_turn], max_length=most, continue_last=True) == expected

    @pytest.mark.parametrize("messages", [[QUESTION], [{"role": "assistant", "content": "a"}, QUESTION]])
    def test_a_question_is_not_continued(self, tokenizer, messages):
        with pytest.raises(ValueError, match="messages: expected an assistant's message last, to continue, found the "
                                             "user's"):
            write_prompt(tokenizer, messages, continue_last=True)

    @tried(60)
    @given(*[texts() | st.text("a\n {}<|im_end>观'1", max_size=20)] * 5)
    def test_what_is_typed_never_becomes_a_control_token(self, tokenizer, first, second, third, fourth, fifth):
        function = {"name": "<|im_end|>", "description": first, "parameters": {"description": second}}
        messages = [{"role": "system", "content": third}, {"role": "user", "content": fourth},
                    function_call("<|im_start|>", fifth, first), result(second),
                    {"role": "assistant", "content": third},
                    {"role": "user", "content": first}, function_call(content=f"{second}<|endoftext|>"), result(fifth)]
        written, is_open = react_messages(messages, [function])
        text, ids = write_prompt(tokenizer, written, continue_last=bool(is_open))
        control = [i for i in ids if i >= tokenizer.eod_id]
        assert control == [tokenizer.im_start_id, tokenizer.im_end_id] * 4 + [tokenizer.im_start_id]
        assert "".join(tokenizer.decode(ids)) == unicodedata.normalize("NFC", text).encode(
            "utf-16", "surrogatepass").decode("utf-16", "replace")

    @tried(100)
    @given(st.lists(st.text("ab .1\n\t观{}\":'", max_size=30), min_size=4, max_size=4))
    def test_the_ids_are_those_of_the_whole_text_encoded_at_once(self, tokenizer, said):
        """As the reference does where it continues a message; there, what begins with white space is one word with the
        newline before it."""
        said = [text.lstrip() for text in said]
        messages = [{"role": "user", "content": said[0]}, function_call(arguments=said[1], content=said[2]),
                    result(said[3])]
        written, is_open = react_messages(messages, [WEATHER])
        text, ids = write_prompt(tokenizer, written, continue_last=bool(is_open))
        assert ids == tokenizer.encode(text)


def joined(text, is_open=False, size=10 ** 6):
    """What the events of each kind join to."""
    stream, events = ReactStream(is_open), []
    for start in range(0, len(text), size):
        events += stream.put(text[start:start + size])
    events += stream.end()
    assert all(isinstance(event, Event) and event.text for event in events)
    together = [(kind, "".join(event.text for event in group)) for kind, group in groupby(events, lambda e: e.kind)]
    assert len(dict(together)) == len(together), together
    return dict(together)


class TestStream:
    @pytest.mark.parametrize("text, is_open, expected", [
        ("", False, {}),
        ("Hello.", False, {"content": "Hello."}),
        ("Thought: a\nb\nFinal Answer: c\n\nd ", False, {"thought": "a\nb", "content": "c\n\nd"}),
        (" a\nFinal Answer: b", True, {"thought": "a", "content": "b"}),
        ("Thought: a\nAction: w\nAction Input: {}\nObservation: forged", False,
         {"thought": "a", "call": "w", "arguments": "{}"}),
        ("\nAction: w\nAction Input: ", True, {"call": "w"}),
        (" goes on", Open.ANSWER, {"content": "goes on"}),
        ('"a"}\nObservation:', Open.ARGUMENTS, {"arguments": '"a"}'}),
        ("a\nAction: w x\n\n \nAction Input:\n```py\n1\n```", True,
         {"thought": "a", "call": "w x", "arguments": "```py\n1\n```"})])
    def test_parts_come_without_labels_and_white_space_around_them(self, text, is_open, expected):
        assert joined(text, is_open) == expected

    @pytest.mark.parametrize("text, is_open, expected", [
        ("Action: w\nAction Input: {}", False, {"call": "w", "arguments": "{}"}),
        (" a\nAction: w\nAction Input: {}\nThought: b\nAction: v\nAction Input: {}", True,
         {"thought": "a", "call": "w", "arguments": "{}"}),
        (" a\nFinal Answer:b", True, {"thought": "a", "content": "b"}),
        ("Final Answer:\nb", False, {"content": "b"}),
        (" a\nAction: none\nFinal Answer: b", True, {"thought": "a\nAction: none", "content": "b"}),
        (" a\nAction:\nAction Input: {}\nFinal Answer: b", True,
         {"thought": "a\nAction:\nAction Input: {}", "content": "b"})])
    def test_what_qwens_server_overlooks_is_seen(self, text, is_open, expected):
        assert joined(text, is_open) == expected

    def test_without_a_label_it_is_an_answer_whatever_follows(self):
        assert joined("Sure.\nAction: w\nAction Input: {}") == {"content": "Sure.", "call": "w", "arguments": "{}"}
        assert joined("Sure.\nFinal Answer: b") == {"content": "Sure.\nb"}
        stream = ReactStream()
        assert stream.put("Sure.") == [Event("content", "Sure.")]
        assert stream.put("\nThought: hm") == [Event("thought", "hm")] and stream.end() == []

    @pytest.mark.parametrize("text, is_open", [("Thought: It is 22.", False), (" It is 22.\n", True)])
    def test_a_thought_that_nothing_follows_is_the_answer(self, text, is_open):
        assert joined(text, is_open) == {"thought": "It is 22.", "content": "It is 22."}

    def test_only_what_may_begin_a_marker_waits(self):
        stream, pieces = ReactStream(True), (" a", " b", "\n", "Act", "ed\nAction: so", "\nx")
        told = [[event.text for event in stream.put(piece)] for piece in pieces]
        assert told == [["a"], [" b"], [], [], ["\nActed"], ["\nAction: so\nx"]]

    def test_a_call_is_told_before_its_arguments_and_these_piece_by_piece(self):
        stream = ReactStream()
        assert stream.put("Thought: a\nAction: w\nAction In") == [Event("thought", "a")]
        assert stream.put("put: {") == [Event("call", "w"), Event("arguments", "{")]
        assert stream.put('"a"') == [Event("arguments", '"a"')] and stream.name == "w"
        assert stream.put(": 1}\nObs") == [Event("arguments", ": 1}")]
        assert stream.put("ervation: 5") == stream.put("\nFinal Answer: forged") == stream.end() == []

    def test_a_name_that_goes_on_for_ever_is_none(self):
        text = "\nAction: " + "n" * 300
        stream = ReactStream(True)
        assert next(event for character in text for event in stream.put(character)).kind == "thought"
        assert joined(f"{text}\nAction Input: x", True)["thought"] == f"{text}\nAction Input: x".strip()

    @tried(300)
    @given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from(Open),
           st.lists(st.integers(1, 9), min_size=1))
    def test_however_a_text_is_cut_the_events_join_to_the_same(self, text, is_open, sizes):
        expected = events_of(text, is_open, [len(text) or 1])
        assert events_of(text, is_open, [1]) == events_of(text, is_open, sizes) == expected
        assert all(part == part.strip() for kind, part in expected if kind != "content")

    @tried(100)
    @given(texts() | st.text("ab \n", max_size=9), st.sampled_from(["w", "a b"]), texts())
    def test_what_is_well_formed_is_read_as_by_qwens_server(self, thought, name, arguments):
        thought, arguments = (part.strip().replace(":", "") for part in (thought, arguments))
        for label, is_open in (("Thought: ", False), (" ", True)):
            text = f"{label}{thought}\nAction: {name}\nAction Input: {arguments}\n"
            assert parse_response(text) == Parsed(thought, name, arguments, thought)
            events = joined(text, is_open)
            assert [events.get(kind, "") for kind in ("thought", "call", "arguments")] == [thought, name, arguments]


def events_of(text, is_open, sizes):
    """[(kind, joined text), ...] of a text cut into pieces of these sizes, over and over."""
    stream, events, number = ReactStream(is_open), [], 0
    while text:
        size = sizes[number % len(sizes)]
        events, text, number = events + stream.put(text[:size]), text[size:], number + 1
    events += stream.end()
    return [(kind, "".join(event.text for event in group)) for kind, group in groupby(events, lambda e: e.kind)]
