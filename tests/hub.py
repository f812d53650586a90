"""A server on loopback with the interface of the Hugging Face hub for files."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

COMMIT = "0" * 40


class Hub:
    """What the server has, and how it behaves."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}  # files of each repository
        self.refusal: tuple[int, str] | None = None  # status and error code
        self.hidden = False  # whether the list of files is refused too
        self.cut_after = None  # bytes of an answer, then the connection closes
        self.cuts = 0
        self.ranges = True
        self.false_content = False
        self.asked = []  # (file, Range)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def find(self) -> tuple[str, bytes] | None:
        repo, _, name = self.path.removeprefix("/").partition(f"/resolve/{COMMIT}/")
        files = self.hub.repos.get(repo, {})
        if self.hub.refusal:
            self.refuse(*self.hub.refusal)
        elif name not in files:
            self.refuse(404, "EntryNotFound")
        else:
            return name, files[name]
        return None

    def list_files(self, repo):
        siblings = []
        for name, data in self.hub.repos[repo].items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                entry |= {
                    "blobId": "f" * 40,  # of the pointer
                    "lfs": {"sha256": digest, "size": len(data), "pointerSize": 1},
                }
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        place = urllib.parse.urlparse(self.path).path
        repo = place.removeprefix("/api/models/")
        if repo in self.hub.repos:
            if self.hub.hidden and self.hub.refusal:
                self.refuse(*self.hub.refusal)
            else:
                self.list_files(repo)
            return
        if not (found := self.find()):
            return
        name, data = found
        wanted = self.headers.get("Range")
        self.hub.asked.append((name, wanted))
        if self.hub.false_content:
            data = data[::-1]
        start = 0
        if wanted and self.hub.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.hub.cut_after is not None and self.hub.cuts and len(body) > 1000:
            self.hub.cuts -= 1
            self.wfile.write(body[: self.hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve() -> Iterator[tuple[Hub, str]]:
    """A hub without repositories, and its address."""
    hub = Hub()
    handler = type("OfThisTest", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
