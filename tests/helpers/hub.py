"""A hub on loopback: what huggingface_hub asks of huggingface.co, with connections that break and bytes that differ."""
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qwen_mindspore.common.files import sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".safetensors", ".bin")  # what a hub keeps outside git, with a sha256
CHUNK = 2**16


class Hub:
    """
    A running server.

    Args:
        repositories (dict): OWNER/NAME -> the folder with its files, which are those of `main`, of `v1` and of COMMIT.

    Attributes:
        url (str): What HF_ENDPOINT is to be.
        requests (list): (method, path, first byte that was asked for, bytes of the body that were sent).
        break_after (int): The next bodies of weights end, connection and all, after so many bytes. None: they don't.
        breaks (int): How many more do.
        corrupt (dict): Name of a file -> in how many more of its bodies a byte is another one.
        refuse (int): The status of every answer, without a body. None: answers are as they should be.
        gated (set): Names of repositories whose files the user may not read.
        on_sent (function): Is told, after each chunk of weights, how many bytes of the body were sent.
    """

    def __init__(self, repositories):
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.requests, self.break_after, self.breaks, self.corrupt = [], None, 0, {}
        self.refuse, self.gated, self.on_sent, self.is_closed = None, set(), None, False
        self._digests = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        """Stop answering, on connections that are open as well; others are refused from then on."""
        self.is_closed = True
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, name):
        """(first byte, bytes sent) of each answer with a file's body."""
        return [(first, sent) for method, path, first, sent in self.requests
                if method == "GET" and path.endswith(f"/{name}")]

    def files(self, repository):
        """{name: path} of a repository."""
        folder = self.repositories[repository]
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def digest(self, path):
        """What the hub has on record: a sha256, or git's of a blob."""
        key = path, path.stat().st_mtime_ns
        if key not in self._digests:
            if path.suffix in LFS:
                self._digests[key] = sha256(path)
            else:
                content = path.read_bytes()
                self._digests[key] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self._digests[key]


@contextlib.contextmanager
def serving(repositories):
    """A Hub, for the length of a block."""
    hub = Hub(repositories)
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        """Nothing."""

    def do_HEAD(self):
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self):
        """A model's description, or a file."""
        if self.hub.is_closed:
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository, revision = (info or file).groups()[:2] if info or file else (None, None)
        if self.hub.refuse:
            self._fail(self.hub.refuse)
        elif repository not in self.hub.repositories:
            self._fail(401 if info else 404, "RepoNotFound")
        elif file and repository in self.hub.gated:
            self._fail(403, "GatedRepo")
        elif revision not in (None, "main", "v1", COMMIT):
            self._fail(404, "RevisionNotFound")
        elif info:
            self._describe(repository)
        elif file[3] not in self.hub.files(repository):
            self._fail(404, "EntryNotFound")
        else:
            self._send_file(self.hub.files(repository)[file[3]], path)

    def _fail(self, status, code=None):
        self.hub.requests.append((self.command, self.path, 0, 0))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def _describe(self, repository):
        siblings = []
        for name, path in self.hub.files(repository).items():
            size, digest = path.stat().st_size, self.hub.digest(path)
            lfs = {"lfs": {"sha256": digest, "size": size, "pointerSize": 134}} if path.suffix in LFS else {}
            siblings.append({"rfilename": name, "size": size, "blobId": "0" * 40 if lfs else digest, **lfs})
        body = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings,
                           "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}).encode()
        self.hub.requests.append((self.command, self.path, 0, len(body)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, path, url):
        size, match = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        self.send_header("ETag", f'"{self.hub.digest(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            self.hub.requests.append((self.command, url, first, 0))
            return
        sent = 0
        try:
            for chunk in self._chunks(path, first):
                self.wfile.write(chunk)
                sent += len(chunk)
                if self.hub.on_sent and path.suffix in LFS:
                    self.hub.on_sent(sent)
        except OSError:  # who reads is gone
            self.close_connection = True
        finally:
            self.hub.requests.append((self.command, url, first, sent))
        if first + sent < size:
            self.close_connection = True

    def _chunks(self, path, first):
        """The bytes of a file, or what goes for them."""
        hub, is_weights = self.hub, path.suffix in LFS
        left, is_corrupt = None, hub.corrupt.get(path.name, 0) > 0
        if is_weights and hub.break_after is not None and hub.breaks:
            left, hub.breaks = hub.break_after, hub.breaks - 1
        if is_corrupt:
            hub.corrupt[path.name] -= 1
        with open(path, "rb") as file:
            file.seek(first)
            while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
                if is_corrupt:
                    chunk, is_corrupt = chunk[:-1] + bytes([chunk[-1] ^ 1]), False
                yield chunk
                left = None if left is None else left - len(chunk)
                if left == 0:
                    return
