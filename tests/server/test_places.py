"""Which of several replicas answers."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_mindspore.server.places import FIRST, Call, Places, places_of, what_is_asked


def asked(**body):
    return what_is_asked(json.dumps(body).encode())


def messages(*roles):
    return [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]


def places(count, capacity=2):
    there = Places(capacity)
    there.up = {f"id {number}": number for number in range(count)}
    return there


# What a conversation begins with

def test_it_is_the_system_message_and_the_first_question_whatever_follows():
    first = asked(messages=messages("system", "user"))
    assert asked(messages=messages("system", "user", "assistant", "user"), temperature=1) == first
    assert asked(messages=messages("developer", "user")) != first
    assert asked(messages=messages("user")) != asked(messages=messages("system", "user"))


def test_it_is_the_beginning_of_a_prompt_text_or_ids():
    assert asked(prompt="a" * FIRST + "b") == asked(prompt="a" * FIRST + "c") != asked(prompt="b")
    assert asked(prompt=["ab", "cd"]) == asked(prompt="ab") == asked(content="ab")
    assert asked(prompt=[[1, 2], [3]]) == asked(prompt=[1, 2])
    assert asked(prompt=[1] * FIRST + [2]) == asked(prompt=[1] * FIRST)


@pytest.mark.parametrize("n, answers", [(None, 1), (3, 3), (0, 1), (-1, 1), ("many", 1), (10**9, 1000)])
def test_how_many_answers_are_wanted(n, answers):
    assert asked(prompt="a", n=n)[1] == answers


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["messages", "prompt", "role", "n", "content"]), inner, max_size=4)))
def test_whatever_json_has_a_place(content):
    begin, answers = what_is_asked(json.dumps(content).encode())
    assert isinstance(begin, bytes) and 1 <= answers <= 1000


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe"])
def test_and_so_has_what_is_none(body):
    assert what_is_asked(body) == (body, 1)


# Who gets it

def test_conversations_are_spread_and_each_stays():
    there, homes = places(4), {}
    for number in range(200):
        begin = b"%d" % number
        homes[begin] = home_of(there, begin)
    assert all(30 <= list(homes.values()).count(id) <= 70 for id in there.up)
    gone = there.up.pop("id 2")
    for begin, home in homes.items():
        assert home_of(there, begin) == home or home == "id 2"
    there.up["another id"] = gone
    assert {begin for begin in homes if home_of(there, begin) == "another id"} == {
        begin for begin, home in homes.items() if home == "id 2"}, "they come back to the number, whoever has it"


def home_of(there, begin):
    """Where a conversation goes that is over at once."""
    call = Call(begin)
    try:
        return there.order(call)[0]
    finally:
        there.end(call)


def test_who_is_full_hands_over_to_the_one_that_has_least_to_do():
    there, calls = places(3), [Call(b"a") for _ in range(9)]
    home = home_of(there, b"a")
    got = [there.order(call)[0] for call in calls[:2]]
    assert got == [home, home] and there.count() == (2, 0)
    got += [there.order(call)[0] for call in calls[2:6]]
    assert sorted(got) == sorted([*there.up] * 2), "each has two"
    assert there.count() == (6, 0)
    assert there.order(calls[6])[0] == home, "where all are full it waits at home"
    assert there.count() == (6, 1)
    there.end(calls[0])
    there.end(calls[1])
    assert home_of(there, b"a") == home


def test_many_answers_to_one_request_count():
    there = places(2)
    home = there.order(Call(b"a", 2))[0]
    assert there.order(Call(b"a"))[0] != home


def test_who_has_refused_comes_last():
    there, call = places(3), Call(b"a")
    first, second, third = there.order(call)
    assert call.replica == first and there.number(call) == there.up[first]
    call.refused.add(first)
    assert there.order(call)[-1] == first and there.has_another(call) and len(there.calls) == 1
    call.refused |= {second, third}
    assert not there.has_another(call)


def test_nobody_there():
    there, call = places(0), Call(b"a")
    assert there.order(call) == [] and there.number(call) is None and there.count() == (0, 0)


def test_a_process_has_one_of_each_application():
    assert places_of("test places", 3) is places_of("test places") and places_of("test places").capacity == 3
