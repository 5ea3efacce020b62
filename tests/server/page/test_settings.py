"""The system prompt, parameters and models."""
import pytest

from helpers.browser import open_settings
from helpers.page_server import Scripted

expect = pytest.importorskip("playwright.sync_api", reason="scripts/test_page.sh installs it").expect
pytestmark = pytest.mark.browser


def test_system_prompt_parameters_and_seed_are_sent(visit, page, server):
    open_settings(page)
    page.fill("#system", "You are a pirate.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Seed").fill("-9007199254740991")
    page.get_by_label("Longest answer").fill("64")
    page.click("#close-panel")
    visit.ask_and_wait("q")
    request = server.requests[-1]
    assert request["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert (request["temperature"], request["seed"], request["max_tokens"]) == (0.3, -9007199254740991, 64)
    page.reload()
    page.click("#conversations .open")
    open_settings(page)
    expect(page.locator("#system")).to_have_value("You are a pirate.")
    expect(page.get_by_label("Temperature")).to_have_value("0.3")
    page.click("#reset-parameters")
    page.click("#close-panel")
    visit.ask_and_wait("q")
    assert "temperature" not in server.requests[-1] and "seed" not in server.requests[-1]


def test_ranges_and_defaults_are_the_servers(visit_with, server):
    server.cards["qwen-demo"] = {"id": "qwen-demo", "defaults": {"temperature": 0.7, "max_new_tokens": 512},
                                 "limits": {"max_tokens": [1, 2048], "temperature": {"min": 0, "max": 1.5}}}
    visit = visit_with()
    page = visit.page
    expect(page.locator("#parameter-temperature")).to_have_attribute("placeholder", "0.7")
    expect(page.locator("#parameter-max_tokens")).to_have_attribute("placeholder", "512")
    open_settings(page)
    expect(page.locator("#parameter-max_tokens-note")).to_have_text("From 1 to 2048.")
    page.fill("#parameter-temperature", "1.6")
    expect(page.locator("#parameter-temperature-note")).to_contain_text("from 0 to 1.5")
    expect(page.locator("#parameter-temperature")).to_have_attribute("aria-invalid", "true")
    page.fill("#parameter-top_k", "2.5")
    expect(page.locator("#parameter-top_k-note")).to_contain_text("Expected an integer")
    page.click("#close-panel")
    visit.ask_and_wait("q")
    assert not {"temperature", "top_k"} & set(server.requests[-1]), "what can't be had is not sent"


def test_one_of_several_models_is_chosen_and_remembered(visit_with, server):
    server.models = [{"id": "qwen-1.8b"}, {"id": "qwen-7b"}]
    visit = visit_with()
    visit.page.select_option("#model", "qwen-7b")
    visit.ask_and_wait("q")
    assert server.requests[-1]["model"] == "qwen-7b"
    visit.page.reload()
    expect(visit.page.locator("#model")).to_have_value("qwen-7b")


def test_a_base_model_goes_on_with_a_text(visit_with, server):
    server.models = [{"id": "qwen-base", "chat": False}]
    visit = visit_with()
    expect(visit.page.locator(".welcome")).to_contain_text("Text completion")
    server.answers.append(Scripted([" there was **a king**"]))
    visit.ask_and_wait("Once upon a time")
    assert server.requests[-1]["path"] == "/v1/completions"
    assert server.requests[-1]["prompt"] == "Once upon a time"
    expect(visit.answers()).to_have_text("there was **a king**")
