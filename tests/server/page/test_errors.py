"""What the server refuses, and a server that is not there."""
import time

import pytest

from helpers.page_server import Scripted

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def test_a_refusal_stands_in_the_conversation(visit, page, server):
    visit.expect("400")
    error = {"message": "top_p: expected a number up to 1", "param": "top_p"}
    server.answers.append(Scripted(status=400, error=error))
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text("top_p: expected a number up to 1 (400 · top_p)")
    page.click("text=Try again")
    expect(visit.answers()).to_have_text("You said: q")
    expect(page.locator(".failure")).to_have_count(0)


def test_a_key_is_asked_for_and_forgotten_with_the_tab(visit_with, server):
    server.key = "secret"
    visit = visit_with()
    visit.expect("401")
    page = visit.page
    expect(page.locator("#banner")).to_contain_text("wants an API key")
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text("Incorrect API key provided")
    page.click(".failure >> text=Enter the API key")
    expect(page.locator("#api-key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Escape")
    expect(page.locator("#banner")).to_be_hidden()
    page.click("text=Try again")
    expect(visit.answers()).to_have_text("You said: q")
    assert server.requests[-1]["authorization"] == "Bearer secret"
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize("status, words", [(429, "The queue is full. Trying again in"),
                                           (503, "The model is loading. Trying again in")])
def test_it_waits_and_tries_again_where_the_server_asks_for_it(visit, page, server, status, words):
    visit.expect(str(status))
    server.answers += [Scripted(status=status, headers={"Retry-After": "2"})] * 2 + [Scripted(["at last"])]
    visit.ask("q")
    expect(page.locator(".phase")).to_contain_text(words)
    expect(visit.answers()).to_have_text("at last")
    assert len(server.requests) == 3


def test_waiting_can_be_stopped(visit, page, server):
    visit.expect("503")
    server.answers += [Scripted(status=503, headers={"Retry-After": "30"})]
    visit.ask("q")
    expect(page.locator(".phase")).to_contain_text("Trying again in 30 s")
    page.click("#stop")
    expect(page.locator(".unanswered")).to_be_visible()
    assert len(server.requests) == 1


def test_the_page_can_be_open_before_the_model_is_loaded(visit_with, server):
    server.loading = time.monotonic() + 3
    visit = visit_with()
    visit.expect("503")
    expect(visit.page.locator("#banner")).to_contain_text("The model is loading")
    visit.ask("early")
    expect(visit.answers()).to_have_text("You said: early")
    expect(visit.page.locator("#state")).to_contain_text("Ready")
    expect(visit.page.locator("#banner")).to_be_hidden()


def test_an_error_in_the_middle_keeps_what_there_is(visit, page, server):
    server.answers.append(Scripted(["half an "], event={"message": "the engine has failed", "code": "engine"}))
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text("the engine has failed")
    expect(visit.answers()).to_have_text("half an")
    page.reload()
    page.click("#conversations .open")
    expect(page.locator(".failure")).to_contain_text("the engine has failed")


def test_a_connection_that_breaks_is_told(visit, page, server):
    server.answers.append(Scripted(["half"], finish=None))
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text("The connection broke")
    expect(visit.answers()).to_have_text("half")


def test_a_server_that_is_gone_is_told(visit, page, server):
    visit.expect("ERR_FAILED", "Failed to load")
    visit.context.route("**/v1/**", lambda route: route.abort())
    visit.ask("q")
    expect(page.locator(".failure")).to_contain_text("can't be reached")
    expect(page.locator("#state")).to_contain_text("Not reached")
    visit.context.unroute("**/v1/**")
    expect(page.locator("#state")).to_contain_text("Ready")
    page.click("text=Try again")
    expect(visit.answers()).to_have_text("You said: q")
