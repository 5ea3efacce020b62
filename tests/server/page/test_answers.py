"""An answer as it comes: streamed, stopped, made anew, taken back."""
import re

import pytest

from helpers.page_server import Scripted

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def test_it_streams_and_its_figures_follow(visit, page, server):
    server.answers.append(Scripted(["One", " two", " three"], pace=1))
    visit.ask("Count")
    expect(visit.answers()).to_have_text(re.compile("One( two)?"))
    assert server.running == 1
    expect(visit.answers()).to_have_text("One two three")
    stats = page.locator(".stats")
    expect(stats).to_contain_text("12 tokens")
    expect(stats).to_contain_text("tokens/s")
    expect(stats).to_contain_text("first after 1.")
    expect(stats).to_contain_text("prompt: 30 tokens, 20 of them cached")
    request = server.requests[-1]
    assert request["messages"] == [{"role": "user", "content": "Count"}]
    assert request["stream"] is True and request["stream_options"] == {"include_usage": True}
    assert request["model"] == "qwen-demo" and "temperature" not in request, "defaults are the server's"


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64])
def test_however_the_stream_is_cut(visit, server, cut):
    server.answers.append(Scripted(["天气", "很好 😀", None, "啊`a`\n\n", "**b**"], cut=cut))
    visit.ask_and_wait("q")
    expect(visit.answers()).to_have_text("天气很好 😀啊a b", use_inner_text=True)


def test_the_prompt_holds_the_conversation_as_raw_text(visit, server):
    raw = "**bold** <code>x</code> `$y$`\n\n```\n<b>\n```\n"
    server.answers.append(Scripted([raw]))
    visit.ask_and_wait("first")
    visit.ask_and_wait("second")
    assert server.requests[-1]["messages"] == [
        {"role": "user", "content": "first"}, {"role": "assistant", "content": raw},
        {"role": "user", "content": "second"}]


def test_stop_frees_the_engine_and_keeps_what_there_is(visit, page, server):
    server.answers.append(Scripted(["word "] * 1000, pace=0.02))
    visit.ask("Go on")
    expect(visit.answers()).to_contain_text("word word")
    page.click("#stop")
    server.wait_until(lambda: server.aborted == 1 and server.running == 0)
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(visit.answers()).to_contain_text("word word")
    expect(page.locator("#question")).to_be_focused()
    visit.ask_and_wait("And now")
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_escape_stops_too_also_before_the_first_token(visit, page, server):
    server.answers.append(Scripted(["never"], wait=30))
    visit.ask("Wait")
    expect(page.locator(".phase")).to_contain_text("In the queue, or reading the prompt")
    page.keyboard.press("Escape")
    server.wait_until(lambda: server.aborted == 1 and server.running == 0)
    expect(page.locator(".unanswered")).to_be_visible()
    assert visit.answers().count() == 0
    page.click("text=Try again")
    expect(visit.answers()).to_have_text("You said: Wait")


def test_one_that_was_cut_off_says_so(visit, page, server):
    server.answers.append(Scripted(["half"], finish="length"))
    visit.ask_and_wait("q")
    expect(page.locator(".note")).to_contain_text("Cut off")


def test_regenerate(visit, page, server):
    server.answers += [Scripted(["first"]), Scripted(["second"])]
    visit.ask_and_wait("q")
    page.click("[aria-label=Regenerate]")
    expect(visit.answers()).to_have_text("second")
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "q"}]


def test_without_a_new_answer_the_old_one_comes_back(visit, page, server):
    server.answers += [Scripted(["first"]), Scripted(["never"], wait=30)]
    visit.ask_and_wait("q")
    page.click("[aria-label=Regenerate]")
    server.wait_until(lambda: server.running == 1)
    page.click("#stop")
    expect(visit.answers()).to_have_text("first")


def test_edit_and_resend(visit, page, server):
    visit.ask_and_wait("one")
    visit.ask_and_wait("two")
    page.locator(".question").first.hover()
    page.locator("[aria-label='Edit and resend']").first.click()
    editor = page.get_by_label("Edit the question")
    expect(editor).to_have_value("one")
    editor.fill("uno")
    editor.press("Enter")
    expect(visit.answers()).to_have_text(["You said: uno"])
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "uno"}]


def test_escape_leaves_the_question_as_it_was(visit, page):
    visit.ask_and_wait("one")
    page.locator(".question").hover()
    page.click("[aria-label='Edit and resend']")
    page.get_by_label("Edit the question").fill("other")
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("one")
    expect(page.locator("[aria-label='Edit and resend']")).to_be_focused()


def test_delete_a_turn(visit, page, server):
    for text in ("one", "two", "three"):
        visit.ask_and_wait(text)
    page.locator(".question").nth(1).hover()
    page.locator("[aria-label='Delete this turn']").nth(1).click()
    expect(page.locator(".bubble")).to_have_text(["one", "three"])
    visit.ask_and_wait("four")
    contents = [message["content"] for message in server.requests[-1]["messages"]]
    assert contents == ["one", "You said: one", "three", "You said: three", "four"]


def test_a_thought_is_folded(visit, page, server):
    server.answers.append(Scripted([{"reasoning_content": "Let me "}, {"reasoning_content": "see."}, "Yes."]))
    visit.ask_and_wait("q")
    expect(visit.answers()).to_have_text("Yes.")
    expect(page.locator(".thought-text")).to_be_hidden()
    page.click(".thought summary")
    expect(page.locator(".thought-text")).to_have_text("Let me see.")


def test_the_queue_is_told_where_the_server_tells_it(visit, page, server):
    server.answers.append(Scripted([None, "done"], comment="queued 3", pace=0.5, wait=0.2))
    visit.ask("q")
    expect(page.locator(".phase")).to_contain_text("3 ahead")
    expect(visit.answers()).to_have_text("done")


def test_no_question_changes_while_an_answer_is_written(visit, page, server):
    visit.ask_and_wait("one")
    server.answers.append(Scripted(["word "] * 1000, pace=0.02))
    visit.ask("two")
    expect(visit.answers().nth(1)).to_contain_text("word")
    expect(page.locator("[aria-label='Edit and resend']").first).to_be_hidden()
    page.click("#stop")
    page.locator(".question").first.hover()
    expect(page.locator("[aria-label='Edit and resend']").first).to_be_visible()
