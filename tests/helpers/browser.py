"""The page in a browser, for the tests that are marked `browser`."""
import json
import re
import shutil
from contextlib import contextmanager

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]


@contextmanager
def chromium():
    """A headless browser, which itself asks nobody for anything."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Visit:
    """
    A user's browser with the page open. What must never happen is kept and asked for by `check`: a request to another
    origin, an error on the console, an exception.

    Attributes:
        page: playwright's page; tabs may be added with `open`.
        faults (list[str]): what must not be; tests that cause an error status take it off by `expect`.
    """

    def __init__(self, browser, server, **options):
        options = {"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **options}
        self.server, self.faults, self.expected = server, [], []
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(15_000)
        # A pattern, no function: the browser itself lets the others pass, also while a test sleeps.
        self.context.route(re.compile(f"^(?!(blob:)?{re.escape(server.url)})"), self._stranger)
        self.page = None

    def open(self, path=""):
        """The page in a tab; the first one is `page`."""
        page = self.context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and self._fault(message.text))
        page.on("pageerror", lambda error: self._fault(f"exception: {error}"))
        page.goto(self.server.url + path)
        self.page = self.page or page
        return page

    def expect(self, *texts):
        """Messages of the console that hold one of these are no faults: the browser tells of each error status."""
        self.expected += texts

    def check(self):
        self.context.close()
        assert not self.faults, self.faults

    def _fault(self, text):
        if not any(expected in text for expected in self.expected):
            self.faults.append(text)

    def _stranger(self, route):
        self.faults.append(f"request to {route.request.url}")
        route.abort()

    # What users do.

    def ask(self, text, page=None):
        page = page or self.page
        page.fill("#question", text)
        page.press("#question", "Enter")

    def ask_and_wait(self, text, page=None):
        """Ask, and wait until the answer is over."""
        page = page or self.page
        self.ask(text, page)
        page.wait_for_selector("#send:visible")
        page.wait_for_selector(".message:last-child .stats span, .failure, .unanswered")

    def answers(self):
        return self.page.locator(".answer .markdown")


def open_settings(page):
    """Open the settings."""
    page.click("#open-panel")
    page.wait_for_selector("#panel[open]")


def set_tools(page, tools, choice="auto"):
    """Give the conversation tools."""
    open_settings(page)
    page.fill("#tools", json.dumps(tools))
    page.select_option("#tool-choice", choice)
    page.click("#close-panel")
