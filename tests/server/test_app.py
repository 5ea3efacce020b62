"""The application as a whole: what is public, what the page may do, what is not there, and the interface's document."""
import re

import pytest
from starlette.testclient import TestClient

from helpers.scripted import ScriptedEngine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.app import CSP, PUBLIC, create_app
from qwen_mindspore.server.metrics import Metrics
from qwen_mindspore.server.service import Limits, Service

KEY = {"Authorization": "Bearer k"}


@pytest.fixture
def build(tmp_path):
    """A function that makes a client of an application with a page of two files."""
    page = tmp_path / "page"
    (page / "vendor").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html><title>Qwen</title>")
    (page / "vendor/a.js").write_text("export default 1;")
    (tmp_path / "secret.txt").write_text("secret")

    def client(limits=None, **options):
        engine = ScriptedEngine("Hello!")
        service = Service("qwen-test", None, engine.config, GenerationSettings(chat_format="chatml"),
                          limits=limits or Limits(), metrics=Metrics("qwen-test"), runner=Runner(engine), state="ready")
        return TestClient(create_app(service, page=page, **options), raise_server_exceptions=False)

    return client


class Runner:
    is_dead = False

    def __init__(self, engine):
        self.engine, self.tickets = engine, {}


# Keys

@pytest.mark.parametrize("path", [*sorted(PUBLIC - {"/favicon.ico"}), "/vendor/a.js"])
def test_what_is_public_needs_no_key(build, path):
    assert build(keys=["k"]).get(path).status_code == 200


@pytest.mark.parametrize("method, path", [
    ("GET", "/v1/models"), ("GET", "/v1/models/qwen-test"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/tokenizer_info"),
    ("POST", "/apply-template"), ("POST", "/v1/chat/completions/input_tokens"), ("GET", "//v1/models"),
    ("GET", "/v1%2Fmodels"), ("GET", "/anything"), ("GET", "/vendor/../v1/models"), ("GET", "/V1/models"),
])
def test_all_else_needs_one(build, method, path):
    response = build(keys=["k"]).request(method, path)
    assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
    assert response.headers["X-Request-Id"], "and is logged as any other request"


def test_who_has_one_gets_through(build):
    client = build(keys=["k"])
    assert client.get("/v1/models", headers=KEY).status_code == 200
    assert client.get("/v1/models", headers={"X-Api-Key": "k"}).status_code == 200


def test_a_user_and_a_password_as_qwens_own_server_has_them(build):
    client = build(users=["me:secret"])
    assert client.get("/v1/models", auth=("me", "secret")).status_code == 200
    refused = client.get("/v1/models", auth=("me", "other"))
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == 'Basic realm="qwen", charset="UTF-8"'


def test_a_refusal_can_be_read_by_a_page_that_may_ask(build):
    response = build(keys=["k"]).get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


# The page

def test_the_page_is_at_the_root_and_may_load_nothing_from_elsewhere(build):
    response = build().get("/")
    assert response.status_code == 200 and "<title>Qwen</title>" in response.text
    assert response.headers["Content-Security-Policy"] == CSP and CSP.startswith("default-src 'self';")
    assert response.headers["Cache-Control"] == "no-cache"
    assert not re.search(r"https?:|\*|unsafe-eval|script-src", CSP)


def test_a_module_of_the_page_is_javascript(build):
    assert build().get("/vendor/a.js").headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/../secret.txt", "/..%2fsecret.txt", "/vendor/..%2f..%2fsecret.txt", "/vendor",
                                  "/vendor/", "/%00"])
def test_nothing_but_the_pages_files_is_handed_out(build, path):
    response = build().get(path)
    assert response.status_code == 404 and "secret" not in response.json()["error"]["type"]


def test_without_a_page_the_rest_is_there(build, tmp_path):
    client = build()
    (tmp_path / "page/index.html").unlink()
    assert client.get("/health").status_code == 200


# What is not there

@pytest.mark.parametrize("method, path, status, said", [
    ("GET", "/v2/models", 404, "GET /v2/models: there is no such route; /docs lists those that there are"),
    ("POST", "/v1/embeddings", 404, "POST /v1/embeddings: there is no such route"),
    ("POST", "/", 404, "POST /: there is no such route"),
    ("POST", "/health", 405, "Method Not Allowed"),
    ("GET", "/tokenize", 405, "Method Not Allowed"),
])
def test_what_is_not_there_is_told_in_openais_shape(build, method, path, status, said):
    response = build().request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"].startswith(said) and set(error) == {"message", "type", "param", "code"}


def test_a_body_is_limited(build):
    response = build(limits=Limits(max_body=20)).post("/tokenize", json={"prompt": "x" * 20})
    assert response.status_code == 413 and "expected at most 20 bytes" in response.json()["error"]["message"]


# Behind a proxy

@pytest.mark.parametrize("prefix", ["", "/qwen"])
def test_behind_a_proxy_that_strips_its_path_or_does_not(build, prefix):
    client = build(root_path="/qwen", keys=["k"])
    assert client.get(f"{prefix}/health").status_code == 200
    assert client.get(f"{prefix}/v1/models").status_code == 401
    assert client.get(f"{prefix}/v1/models", headers=KEY).status_code == 200
    assert "<title>" in client.get(f"{prefix}/").text


# The document

def test_the_interfaces_document_tells_errors_as_they_are(build):
    document = build(keys=["k"]).get("/openapi.json").json()
    assert {"/v1/models", "/tokenize", "/detokenize", "/tokenizer_info", "/health"} <= set(document["paths"])
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"] and "default" in operation["responses"]
            assert ("security" in operation) == (path not in PUBLIC)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_the_documents_page_needs_no_scripts_and_nothing_from_elsewhere(build):
    text = build().get("/docs").text
    assert "<code>POST /tokenize</code>" in text and "with_pieces" in text and "<script" not in text
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
