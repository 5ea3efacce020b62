"""The application: every route of the server, and what requests pass on their way to it."""
import mimetypes
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles

from qwen_mindspore import __version__
from qwen_mindspore.server import chat, completions, info
from qwen_mindspore.server.errors import ApiError, install_handlers
from qwen_mindspore.server.middleware import Activity, Bodies, Keys, Requests, cors_options, route_path
from qwen_mindspore.server.reference import reference_page

__all__ = ["CSP", "PUBLIC", "create_app", "page_folder"]

# The page needs nothing from elsewhere, and nothing that an answer holds may bring it in. KaTeX sets styles inline.
CSP = ("default-src 'self'; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'self'; "
       "frame-ancestors 'none'")
# What anybody may have where keys are set, besides the page's files. Whatever is not named needs a key.
PUBLIC = {"/", "/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json", "/favicon.ico"}
GENERATING = {route.path for router in (chat.router, completions.router) for route in router.routes}
TITLE = "Qwen on MindSpore"
ABOUT = "OpenAI's interface, and what vLLM and llama.cpp have beside it, over one Qwen."

# Not what the machine's tables say: a browser runs no module that is said to be plain text.
for ending, kind in ((".js", "text/javascript"), (".mjs", "text/javascript"), (".woff2", "font/woff2"),
                     (".svg", "image/svg+xml"), (".json", "application/json")):
    mimetypes.add_type(kind, ending)


def page_folder():
    """Path, the files of the page."""
    return Path(str(resources.files("qwen_mindspore.server") / "page"))


def create_app(service, keys=(), users=(), origins=("localhost",), log_prompts=False, root_path="", page=None):
    """
    The application of a service.

    Args:
        service (Service): Answers; `app.state.service`.
        keys, users (Sequence[str]): Who may ask, see `middleware.Keys`; with neither, everybody.
        origins (Sequence[str]): Whose pages may ask, see `middleware.cors_options`.
        log_prompts (bool): The log has what is asked, too.
        root_path (str): The path under which a proxy shows the server.
        page (Path): The page's files. Default: those that are installed.

    Returns:
        FastAPI, with `app.state.activity`.

    Raises:
        ValueError: What is no origin.
    """
    root_path = f"/{root_path.strip('/')}" if root_path.strip("/") else ""
    app = FastAPI(title=TITLE, version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
    app.state.service, app.state.activity = service, Activity()
    install_handlers(app)
    for router in _routers():
        app.include_router(router)
    app.openapi = lambda: _openapi(app, bool(keys), bool(users), root_path)
    app.add_api_route("/docs", lambda: HTMLResponse(reference_page(app.openapi())), include_in_schema=False)
    files = _Page(page or page_folder())
    app.router.routes.append(files)
    app.router.default = _no_route
    # From the inside out.
    paths = {route.path for router in _routers() for route in router.routes if "POST" in route.methods}
    app.add_middleware(Bodies, paths=paths, max_body=service.limits.max_body, gate=lambda path: _gate(service, path))
    app.add_middleware(Keys, keys=keys, users=users, public=lambda path: path in PUBLIC or files.has(path))
    app.add_middleware(CORSMiddleware, **cors_options(origins))
    app.add_middleware(Requests, headers=[(b"content-security-policy", CSP.encode())], prompts=log_prompts,
                       on_end=service.metrics.answered, activity=app.state.activity, root_path=root_path)
    return app


async def _no_route(scope, receive, send):
    asked = f"{scope['method']} {route_path(scope)}"
    raise ApiError(404, f"{asked}: there is no such route; /docs lists those that there are")


def _gate(service, path):
    """ApiError where a request for an answer can't be let in, whatever it asks; see `Service.admit`."""
    if path in GENERATING:
        service.admit(0)


def _routers():
    return (chat.router, completions.router, info.router)


class _Page(Mount):
    """The page's files at /, and no other path: what is not there is told as any other wrong path is."""

    def __init__(self, folder):
        self.files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        super().__init__("/", _Files(directory=folder, html=True, check_dir=False), name="page")

    def has(self, path):
        """Whether a path is one of a file."""
        return (path.lstrip("/") or "index.html") in self.files

    def matches(self, scope):
        """Starlette's; nothing else than a file."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not self.has(route_path(scope)):
            return Match.NONE, {}
        return super().matches(scope)


class _Files(StaticFiles):
    """Files that a browser asks about each time: another version may be there."""

    def file_response(self, *args, **kwargs):
        """Starlette's."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _openapi(app, has_keys, has_users, root_path):
    """The document of the interface; errors as they are, not as FastAPI has them: 400, in OpenAI's shape."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    if root_path:
        document["servers"] = [{"url": root_path}]
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]}}}}}
    ways = {"key": {"type": "http", "scheme": "bearer"}, "header": {
        "type": "apiKey", "in": "header", "name": "X-Api-Key"}} if has_keys else {}
    ways |= {"user": {"type": "http", "scheme": "basic"}} if has_users else {}
    if ways:
        components["securitySchemes"] = ways
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error", "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
            if ways and path not in PUBLIC:
                operation["security"] = [{way: []} for way in ways]
    app.openapi_schema = document
    return document
