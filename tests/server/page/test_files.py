"""Export and import, in the form of the terminal."""
import json

import pytest

from helpers.browser import WEATHER, open_settings, set_tools
from helpers.page_server import Scripted, call_deltas

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def export(page):
    with page.expect_download() as download:
        page.click("#export")
    return download.value


def test_the_terminal_reads_what_is_exported(visit, page, server, tmp_path):
    from qwen_mindspore.chat.session import load_conversation
    open_settings(page)
    page.fill("#system", "You are brief.")
    page.click("#close-panel")
    server.answers.append(Scripted([{"reasoning_content": "Hm."}, "**你好** <b>"]))
    visit.ask_and_wait("Hello / there?")
    download = export(page)
    assert download.suggested_filename == "Hello there.json"
    download.save_as(tmp_path / "chat.json")
    assert load_conversation(tmp_path / "chat.json") == ("You are brief.", [("Hello / there?", "**你好** <b>")])


def test_the_page_reads_what_the_terminal_saves(visit, page, server, tmp_path):
    from qwen_mindspore.chat.session import save_conversation
    save_conversation(tmp_path / "chat.json", "You are brief.", [("Hi", "Hello."), ("How?", "So.")])
    page.set_input_files("#import-file", tmp_path / "chat.json")
    expect(page.locator(".bubble")).to_have_text(["Hi", "How?"])
    visit.ask_and_wait("Why?")
    assert [message["content"] for message in server.requests[-1]["messages"]] == [
        "You are brief.", "Hi", "Hello.", "How?", "So.", "Why?"]


def test_tool_calls_and_thoughts_come_back_as_they_were(visit, page, server, tmp_path):
    set_tools(page, [WEATHER])
    server.answers += [Scripted([{"reasoning_content": "Look."}, *call_deltas("weather", '{"city": "杭州"}')],
                                finish="tool_calls"), Scripted(["22 degrees."])]
    visit.ask("Weather?")
    page.fill(".card-answer textarea", "22")
    page.click(".card-answer button")
    expect(visit.answers().nth(1)).to_have_text("22 degrees.")
    export(page).save_as(tmp_path / "a.json")
    page.set_input_files("#import-file", tmp_path / "a.json")
    expect(page.locator("#conversations .open")).to_have_count(2)
    export(page).save_as(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["messages"][1]["tool_calls"][0]["function"] == {
        "name": "weather", "arguments": '{"city": "杭州"}'}


def test_a_question_without_an_answer_is_not_written_and_the_user_told(visit, page, server, tmp_path):
    visit.ask_and_wait("one")
    server.answers.append(Scripted(["never"], wait=30))
    visit.ask("two")
    server.wait_until(lambda: server.running == 1)
    page.click("#stop")
    expect(page.locator(".unanswered")).to_be_visible()
    export(page).save_as(tmp_path / "chat.json")
    expect(page.locator(".notice")).to_contain_text("has no answer")
    assert len(json.loads((tmp_path / "chat.json").read_text())["messages"]) == 2


@pytest.mark.parametrize("text, complaint", [
    ("no json", 'expected JSON of the form {"messages": [...]}'),
    ("[]", 'expected JSON of the form {"messages": [...]}'),
    ('{"messages": []}', "there are no messages in it"),
    ('{"messages": [{"role": "user"}]}',
     'message 1: expected {"role": ..., "content": TEXT}, found {"role":"user"}'),
    ('{"messages": [null]}', "message 1: expected"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "message 1: its role does not fit there"),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}',
     "message 2: only the first may be a system message"),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}', "message 2: its role"),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [1]}]}',
     "message 2: expected tool_calls")])
def test_what_is_wrong_with_a_file_is_named(visit, page, tmp_path, text, complaint):
    visit.ask_and_wait("kept")
    (tmp_path / "chat.json").write_text(text)
    page.set_input_files("#import-file", tmp_path / "chat.json")
    expect(page.locator(".notice.error")).to_contain_text(f"chat.json: {complaint}")
    expect(page.locator(".bubble")).to_have_text("kept")
