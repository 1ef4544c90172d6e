"""A stand-in for the part of the Hugging Face Hub's API that reads files of a dataset."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "someone/results"
COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    root: Path
    token: str

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._answer({"error": "no such token"}, 401)
        api, files = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/main/"
        if path in (api, f"{api}/revision/main"):
            return self._answer({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        if path.startswith(f"{api}/tree/main"):
            place = self.root / path.removeprefix(f"{api}/tree/main").strip("/")
            if not place.is_dir():
                return self._answer({"error": "Entry not found"}, 404, "EntryNotFound")
            return self._answer([self._entry(each) for each in sorted(place.iterdir())])
        if path.startswith(files):
            file = self.root / path.removeprefix(files)
            if file.is_file():
                return self._send(file.read_bytes())
        return self._answer({"error": "Entry not found"}, 404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        plain = json.loads(body) if body.startswith("{") else parse_qs(body)
        found = [self.root / path for path in plain["paths"]]
        self._answer([self._entry(each) for each in found if each.exists()])

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = "file" if path.is_file() else "directory"
        size = path.stat().st_size if path.is_file() else 0
        name = str(path.relative_to(self.root))
        return {"type": kind, "oid": COMMIT, "size": size, "path": name}

    def _answer(self, plain: Any, status: int = 200, code: str = "") -> None:
        self._send(json.dumps(plain).encode(), status, code)

    def _send(self, content: bytes, status: int = 200, code: str = "") -> None:
        whole = len(content)
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked and status == 200:
            first, _, last = asked.partition("-")
            content, status = content[int(first) : int(last or whole - 1) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"etag"')
        if code:
            self.send_header("X-Error-Code", code)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(root: Path, token: str) -> Iterator[str]:
    """The address of a hub whose one dataset has the files of a folder, for who has the token."""
    handler = type("Handler", (_Handler,), {"root": root, "token": token})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
