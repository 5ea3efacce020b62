"""Several conversations, several tabs, and a browser that has no room."""
import pytest

from helpers.page_server import Scripted

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def test_several_are_kept(visit, page):
    visit.ask_and_wait("apples")
    page.click("#new-chat")
    expect(page.locator(".welcome")).to_be_visible()
    visit.ask_and_wait("pears")
    page.reload()
    items = page.locator("#conversations .open")
    expect(items).to_have_text(["pears", "apples"])
    items.nth(1).click()
    expect(visit.answers()).to_have_text("You said: apples")
    expect(page.locator("h1")).to_have_text("apples")
    expect(items.nth(1)).to_have_attribute("aria-current", "true")


def test_rename_and_delete(visit, page):
    visit.ask_and_wait("apples")
    page.click("[aria-label=Rename]")
    page.get_by_label("New name").fill("Fruit")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Fruit")
    expect(page.locator("[aria-label=Rename]")).to_be_focused()
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text("Fruit")
    page.click("[aria-label='Delete conversation']")
    page.keyboard.press("Escape")
    expect(page.locator("#conversations .open")).to_have_text("Fruit")
    page.click("[aria-label='Delete conversation']")
    page.click(".ask .danger")
    expect(page.locator("#conversations .open")).to_have_count(0)
    page.reload()
    expect(page.locator("#conversations .open")).to_have_count(0)


def test_an_answer_goes_on_while_another_conversation_is_shown(visit, page, server):
    server.answers.append(Scripted(["slow "] * 10, pace=0.1))
    visit.ask("long")
    expect(visit.answers()).to_contain_text("slow")
    page.click("#new-chat")
    visit.ask_and_wait("short")
    expect(page.locator("#conversations .dot")).to_have_count(0, timeout=5000)
    page.locator("#conversations .open", has_text="long").click()
    expect(visit.answers()).to_have_text(("slow " * 10).strip())
    assert server.aborted == 0


def test_deleting_one_ends_its_answer(visit, page, server):
    server.answers.append(Scripted(["word "] * 1000, pace=0.02))
    visit.ask("long")
    expect(visit.answers()).to_contain_text("word")
    page.click("[aria-label='Delete conversation']")
    page.click(".ask .danger")
    server.wait_until(lambda: server.aborted == 1 and server.running == 0)
    expect(page.locator("#conversations .open")).to_have_count(0)


def test_an_answer_that_was_being_written_outlives_the_page(visit, page, server):
    server.answers.append(Scripted(["kept "] * 1000, pace=0.02))
    visit.ask("q")
    expect(visit.answers()).to_contain_text("kept")
    page.reload()
    page.click("#conversations .open")
    expect(visit.answers()).to_contain_text("kept")
    server.wait_until(lambda: server.aborted == 1)


def test_two_tabs_see_each_others_conversations(visit, page):
    other = visit.open()
    visit.ask_and_wait("apples")
    visit.ask_and_wait("pears", other)
    for tab in (page, other):
        expect(tab.locator("#conversations .open")).to_have_text(["pears", "apples"])


def test_two_tabs_do_not_write_over_each_other(visit, page, server):
    visit.ask_and_wait("start")
    other = visit.open()
    other.click("#conversations .open")
    server.answers.append(Scripted(["mine "] * 30, pace=0.1))
    visit.ask("first tab")
    expect(page.locator(".answer").nth(1)).to_contain_text("mine")
    expect(other.locator(".bubble")).to_have_text(["start", "first tab"])
    other.locator(".question").first.hover()
    other.locator("[aria-label='Delete this turn']").first.click()
    page.wait_for_selector("#send:visible")
    page.reload()
    texts = []
    for item in page.locator("#conversations .open").all():
        item.click()
        texts.append(page.locator("#messages").inner_text())
    assert len(texts) == 2
    assert sum("mine mine" in text and "start" in text for text in texts) == 1, "the first tab's is whole"
    assert sum("start" not in text for text in texts) == 1, "the second tab's is as it left it"


def test_what_another_tab_deletes_is_gone(visit, page):
    visit.ask_and_wait("apples")
    other = visit.open()
    other.hover("#conversations li")
    other.click("[aria-label='Delete conversation']")
    other.click(".ask .danger")
    expect(page.locator(".welcome")).to_be_visible()


@pytest.mark.parametrize("fault", [
    "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }",
    "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"])
def test_a_browser_that_keeps_nothing_is_told_and_the_chat_goes_on(visit, page, server, fault):
    page.add_init_script(fault)
    page.reload()
    visit.ask_and_wait("one")
    expect(page.locator(".notice.error")).to_contain_text("storage is full")
    visit.ask_and_wait("two")
    expect(page.locator(".notice.error")).to_have_count(1)
    assert len(server.requests[-1]["messages"]) == 3
    page.click("#new-chat")
    page.click("#conversations .open")
    expect(page.locator(".bubble")).to_have_text(["one", "two"])
