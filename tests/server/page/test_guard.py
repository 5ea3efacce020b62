"""What the other tests lean on: whatever the page must never do is seen."""
import pytest

from helpers.browser import Visit

pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it")
pytestmark = pytest.mark.browser


@pytest.mark.parametrize("deed, told", [
    ("void open('http://evil.example/')", "request to http://evil.example/"),
    ("void fetch('https://evil.example/').catch(() => 0)", "Content Security Policy"),
    ("void document.body.append(Object.assign(new Image(), {src: '//evil.example/x.png'}))", "Content Security Policy"),
    ("void setTimeout(() => { throw new Error('oops'); })", "exception: oops"),
    ("console.error('oops')", "oops")])
def test_a_fault_is_seen(browser, server, deed, told):
    visit = Visit(browser, server)
    visit.open().evaluate(deed)
    visit.page.wait_for_timeout(500)
    with pytest.raises(AssertionError, match=told):
        visit.check()
