"""Tools, whose calls the user answers."""
import json

import pytest

from helpers.browser import WEATHER, open_settings, set_tools
from helpers.page_server import Scripted, call_deltas

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def test_a_call_is_answered_by_hand_and_the_loop_goes_on(visit, page, server):
    set_tools(page, [WEATHER])
    call = call_deltas("weather", '{"city": "Boston"}')
    server.answers += [Scripted([{"reasoning_content": "I should look."}, *call], finish="tool_calls", pace=0.05),
                       Scripted(["It is 22 degrees."])]
    visit.ask("Weather in Boston?")
    card = page.locator(".card")
    expect(card).to_contain_text("waits for a result")
    expect(card.locator("strong")).to_have_text("weather")
    expect(card.locator("code")).to_have_text('{\n  "city": "Boston"\n}')
    expect(page.locator("#send")).to_be_disabled()
    expect(card.locator("textarea")).to_be_focused()
    card.locator("textarea").fill('{"t": 22}')
    page.keyboard.press("Enter")
    expect(visit.answers().nth(1)).to_have_text("It is 22 degrees.")
    expect(card).to_contain_text("answered")
    first, second = server.requests
    assert first["tools"] == [WEATHER] and first["tool_choice"] == "auto"
    assert second["messages"][1:] == [
        {"role": "assistant", "content": "I should look.", "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "weather", "arguments": '{"city": "Boston"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"t": 22}'}]


def test_an_open_call_waits_until_the_page_comes_back(visit, page, server):
    set_tools(page, [WEATHER["function"]], "required")
    server.answers.append(Scripted(call_deltas("weather", '{"city": "x"}'), finish="tool_calls"))
    visit.ask("q")
    page.wait_for_selector(".card-answer")
    assert server.requests[-1]["tools"] == [WEATHER] and server.requests[-1]["tool_choice"] == "required"
    page.reload()
    page.click("#conversations .open")
    page.click(".card-answer button")
    expect(page.locator(".card-answer [role=alert]")).to_contain_text("The result is empty")
    page.fill(".card-answer textarea", "ok")
    page.click(".card-answer button")
    expect(visit.answers().nth(1)).to_have_text("You said: ok")


def test_several_calls_at_once(visit, page, server):
    set_tools(page, [WEATHER])
    deltas = call_deltas("weather", '{"city": "a"}', id="c1")
    more = [json.loads(json.dumps(delta).replace('"index": 0', '"index": 1')) for delta in
            call_deltas("weather", '{"city": "b"}', id="c2")]
    server.answers += [Scripted(deltas + more, finish="tool_calls"), Scripted(["Both."])]
    visit.ask("q")
    page.wait_for_selector(".card-answer")
    for result in ("1", "2"):
        page.locator(".card-answer textarea").first.fill(result)
        page.locator(".card-answer button").first.click()
    expect(visit.answers().nth(1)).to_have_text("Both.")
    assert [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "tool"] == ["1", "2"]


@pytest.mark.parametrize("text, complaint", [
    ("{", "This is no JSON"), ("[1]", "Tool 1: expected a function with a name"),
    ('[{"name": "a"}, {"name": ""}]', "Tool 2: expected a function with a name"),
    ('{"name": "a", "parameters": 1}', "Tool 1: parameters: expected a JSON schema"),
    ('[{"name": "a"}, {"name": "a"}]', "a is there twice")])
def test_what_is_wrong_with_tools_is_named(visit, page, server, text, complaint):
    open_settings(page)
    page.fill("#tools", text)
    expect(page.locator("#tools-note")).to_contain_text(complaint)
    expect(page.locator("#tools")).to_have_attribute("aria-invalid", "true")
    page.click("#close-panel")
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text(complaint)
    assert server.requests == []


def test_a_call_that_was_stopped_is_not_waited_for(visit, page, server):
    set_tools(page, [WEATHER])
    server.answers.append(Scripted(call_deltas("weather", '{"city": "Boston"}', pieces=20), pace=0.3))
    visit.ask("q")
    expect(page.locator(".card")).to_contain_text("being written")
    page.click("#stop")
    expect(page.locator("#send")).to_be_enabled()
    visit.ask_and_wait("next")


def test_the_arguments_that_are_shown_are_those_that_came(visit, page, server):
    set_tools(page, [WEATHER])
    server.answers.append(Scripted(call_deltas("weather", '{"n":12345678901234567890,"x":[1.0,{}],"t":"a, {b}"}'),
                                   finish="tool_calls"))
    visit.ask("q")
    expect(page.locator(".card-answer")).to_be_visible()
    assert page.locator(".card code").inner_text() == (
        '{\n  "n": 12345678901234567890,\n  "x": [\n    1.0,\n    {}\n  ],\n  "t": "a, {b}"\n}')
