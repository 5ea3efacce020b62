"""Input methods, languages, colors, the keyboard, screen readers, phones and slow machines."""
import re

import pytest

from helpers.browser import WEATHER, open_settings, set_tools
from helpers.page_server import Scripted, call_deltas

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser
WORDS = ["word ", "other ", "**bold** ", "`code` ", "$x^2$ ", "你好"]


@pytest.mark.parametrize("event", ["{isComposing: true}", "{keyCode: 229}"])
def test_enter_that_ends_a_word_of_an_input_method_does_not_send(visit, page, server, event):
    page.fill("#question", "ni hao")
    page.evaluate(f"""document.getElementById("question").dispatchEvent(new KeyboardEvent("keydown",
        {{key: "Enter", bubbles: true, cancelable: true, ...{event}}}))""")
    page.wait_for_timeout(200)
    assert server.requests == []
    expect(page.locator("#question")).to_have_value("ni hao")


def test_shift_enter_begins_a_line(visit, page, server):
    page.click("#question")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    server.wait_until(lambda: server.requests)
    assert server.requests[0]["messages"][0]["content"] == "a\nb"


def test_it_speaks_the_browsers_language_and_switches(visit_with):
    visit = visit_with(locale="zh-CN")
    page = visit.page
    expect(page.locator("#new-chat")).to_have_text("新对话")
    expect(page.locator("#question")).to_have_attribute("placeholder", "请输入问题……")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    visit.ask_and_wait("你好")
    expect(page.locator(".stats")).to_contain_text("12 个词元")
    page.click("#switch-language")
    expect(page.locator("#new-chat")).to_have_text("New chat")
    expect(page.locator(".stats")).to_contain_text("12 tokens")
    page.reload()
    expect(page.locator("#new-chat")).to_have_text("New chat")


def test_what_was_not_shown_meanwhile_speaks_the_language_too(visit, page, server):
    server.answers.append(Scripted(["slow "] * 30, pace=0.1))
    visit.ask("long")
    expect(visit.answers()).to_contain_text("slow")
    page.click("#new-chat")
    page.click("#switch-language")
    page.locator("#conversations .open", has_text="long").click()
    expect(page.locator(".author")).to_have_text("千问")
    expect(page.locator(".stats")).to_contain_text("词元")


def test_both_languages_have_all_words(page):
    words = page.evaluate("import('./words.js').then(({WORDS}) => WORDS)")
    assert set(words["en"]) == set(words["zh"])
    for key, text in words["en"].items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", words["zh"][key])), key


def test_dark_as_the_system_or_as_chosen(visit_with):
    page = visit_with(color_scheme="dark").page
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    page.click("#switch-theme")
    expect(root).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")


def test_by_keyboard_alone(visit, page, server):
    def tab_to(label):
        for _ in range(40):
            page.keyboard.press("Tab")
            at = page.evaluate("""() => {
                const {ariaLabel, innerText} = document.activeElement;
                return ariaLabel || innerText;
            }""")
            if at.strip() == label:
                return
        raise AssertionError(f"{label} is not reached")

    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Enter")
    expect(visit.answers()).to_have_text("You said: one")
    tab_to("Settings")
    page.keyboard.press("Enter")
    expect(page.locator("#close-panel")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#system")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#open-panel")).to_be_focused()
    tab_to("Edit and resend")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(visit.answers()).to_have_text("You said: two")
    tab_to("Regenerate")
    page.keyboard.press("Enter")
    server.wait_until(lambda: len(server.requests) == 3)
    tab_to("Rename")
    page.keyboard.press("Enter")
    page.keyboard.type("Mine")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Mine")
    tab_to("Delete conversation")
    page.keyboard.press("Enter")
    expect(page.locator(".ask .plain")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#new-chat")).to_be_focused()


def test_the_screen_reader_hears_the_answer_once(visit, page, server):
    page.evaluate("""() => {
        window.said = [];
        const place = document.getElementById("announcer");
        new MutationObserver(() => said.push(place.textContent)).observe(place, {childList: true, subtree: true});
        window.live = [...document.querySelectorAll("#log, #log [aria-live], #messages")].map(
            element => element.getAttribute("aria-live") ?? element.getAttribute("role"));
    }""")
    server.answers.append(Scripted(["word "] * 50, pace=0.01))
    visit.ask_and_wait("q")
    page.wait_for_timeout(100)
    said = page.evaluate("[...new Set(said)]")
    assert said == ["Sent.", "Answer of 12 tokens: " + "word " * 50]
    assert "log" not in page.evaluate("live") and "polite" not in page.evaluate("live")


def test_a_phone(visit_with, server):
    visit = visit_with(viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    page = visit.page
    server.answers.append(Scripted(["`" + "x" * 200 + "` " + "y" * 200 + "\n\n```\n" + "z" * 300 + "\n```\n\n$$"
                                    + "a+" * 80 + "b$$\n\n|" + " column |" * 12 + "\n|" + "---|" * 12]))
    visit.ask_and_wait("w" * 300)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert page.evaluate("document.getElementById('log').scrollWidth <= 360")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.tap("#open-sidebar")
    expect(page.locator("#close-sidebar")).to_be_focused()
    assert page.evaluate("document.querySelector('main').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#open-sidebar")).to_be_focused()
    page.tap("#open-sidebar")
    page.tap("#conversations .open")
    expect(page.locator("#sidebar")).to_be_hidden()


@pytest.mark.parametrize("options", [
    {"color_scheme": "light"}, {"color_scheme": "dark"}, {"locale": "zh-CN"},
    {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True}],
    ids=["light", "dark", "chinese", "phone"])
def test_axe_finds_nothing(visit_with, server, options):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = visit_with(reduced_motion="reduce", **options)
    visit.expect("400")
    page = visit.page

    def check(where):
        found = axe.run(page).response["violations"]
        nodes = [(rule["id"], node["html"][:150], node["failureSummary"][:300]) for rule in found
                 for node in rule["nodes"]]
        assert not found, (where, nodes)

    check("welcome")
    server.answers.append(Scripted([{"reasoning_content": "Hm."}, "# T\n\ntext [link](https://a.b) `code`\n\n"
        "```python\n# note\ndef f(x: int): return 'a' + str(1)\n```\n\n| a |\n|---|\n| $x$ |\n\n$$y$$\n\n- [x] z\n\n"
        "> q"]))
    visit.ask_and_wait("q")
    page.click(".thought summary")
    check("answer")
    set_tools(page, [WEATHER])
    server.answers += [Scripted(call_deltas("weather", '{"city": "x"}'), finish="tool_calls"),
                       Scripted(["word "] * 1000, pace=0.02)]
    visit.ask("w")
    page.wait_for_selector(".card-answer")
    check("call")
    page.fill(".card-answer textarea", "22")
    page.click(".card-answer button")
    server.wait_until(lambda: server.running == 1)
    check("running")
    page.click("#stop")
    server.answers.append(Scripted(status=400, error={"message": "no"}))
    visit.ask("e")
    page.wait_for_selector(".failure")
    check("failure")
    page.locator(".question [data-t-label=edit]").first.click()
    check("editing")
    open_settings(page)
    page.fill("#parameter-temperature", "99")
    check("settings")
    page.click("#close-panel")
    if page.locator("#open-sidebar").is_visible():
        page.click("#open-sidebar")
        page.wait_for_timeout(300)
    page.locator("[data-t-label=rename]").first.click()
    check("rename")
    page.keyboard.press("Escape")
    page.locator("[data-t-label=removeConversation]").first.click()
    check("question")


@pytest.mark.parametrize("kind", ["paragraphs", "one paragraph", "code"])
def test_typing_stays_responsive_during_an_answer_of_10_000_tokens(visit, page, server, kind):
    length = 60 if kind == "paragraphs" else 10_000
    tokens = [WORDS[at % len(WORDS)] + ("\n\n" if at % length == length - 1 else "") for at in range(10_000)]
    if kind == "code":
        tokens = ["```python\n"] + [("x = f(1)\n" if at % 5 == 0 else "a + ") for at in range(9_998)] + ["\n```"]
    # 20 tokens a piece, 5 ms apart: more than any engine gives.
    pieces = ["".join(tokens[at:at + 20]) for at in range(0, len(tokens), 20)]
    server.answers.append(Scripted(pieces, pace=0.005))
    visit.ask("Write")
    page.wait_for_selector(".running .block")
    page.evaluate("""() => {
        window.delays = [];
        document.getElementById("question").addEventListener("keydown", event => {
            requestAnimationFrame(() => delays.push(performance.now() - event.timeStamp));
        });
    }""")
    while page.locator("#stop:visible").count():
        page.keyboard.press("a")
        page.wait_for_timeout(20)
    delays = sorted(page.evaluate("delays"))
    assert len(delays) > 20
    assert delays[len(delays) * 3 // 4] < 150, delays  # milliseconds from the key to the next frame, most of the time
    page.wait_for_selector(".stats span")
    text = visit.answers().inner_text()
    assert text.count("word") == sum("word" in token for token in tokens)
