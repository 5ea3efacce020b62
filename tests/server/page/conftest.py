"""
The page in a browser, against a server whose answers are written here. `bash scripts/test_page.sh` runs these tests.

Each fails on a request to another origin, an error on the console or an exception in the page.
"""
import pytest

from helpers.browser import Visit, chromium
from helpers.page_server import PageServer


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def the_server():
    with PageServer() as server:
        yield server


@pytest.fixture
def server(the_server):
    the_server.reset()
    return the_server


@pytest.fixture
def visit_with(browser, server):
    """A function that opens the page in a browser with these settings; all that is opened is checked at the end."""
    visits = []

    def visit(**options):
        visits.append(Visit(browser, server, **options))
        visits[-1].open()
        return visits[-1]

    yield visit
    for opened in visits:
        opened.check()


@pytest.fixture
def visit(visit_with):
    return visit_with()


@pytest.fixture
def page(visit):
    return visit.page
