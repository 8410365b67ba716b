"""A server on this machine that speaks what an index and a model hub speak, and can misbehave on request."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOBODY = "http://127.0.0.1:9"  # nothing listens there
LARGE = (".gguf", ".safetensors", ".bin")  # what the hub keeps outside of Git


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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class StandIn:
    """Files by URL path, packages and repositories by name; `requests` holds what was asked for, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.packages: dict[str, list[str]] = {}
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # of a repository, by hash: its files
        self.branches: dict[str, dict[str, str]] = {}
        self.json_pages = True
        self.hashes = True
        self.sizes = False
        self.ranges = True
        self.if_range = True
        self.etags = True
        self.blobs = True
        self.break_after: list[int] = []  # one entry per response that is cut off after so many bytes
        self.wrong_length = 0  # added to Content-Length of a whole file
        self.stall_after: int | None = None  # bytes of a file after which the server falls silent
        self.status: dict[str, tuple[int, dict[str, str]]] = {}  # answers for paths that hold these words
        self.credentials: str | None = None
        self.gated: dict[str, set[str]] = {}  # the tokens that may read a repository, by its name
        self.busy = 0  # so many answers of the hub are "too many requests", to be asked again at once
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0  # bytes of large files
        self.before_answer: Callable[[str, str], None] = lambda method, path: None
        self._end_of_silence = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another name, as the hub keeps large files on another host."""
        return self.url.replace("127.0.0.1", "localhost")

    def add_wheel(self, package: str, version: str, member: str, data: bytes) -> bytes:
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        self.files[f"/files/{name}"] = wheel = wheel_of(member, data, package, version)
        self.packages.setdefault(package, []).append(name)
        return wheel

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Move a branch of a repository to a new commit with these files."""
        of_repo = self.commits.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo} {len(of_repo)}".encode()).hexdigest()
        of_repo[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """The Range header, or '', of every GET for a wheel or a large file of the hub."""
        return [
            headers.get("range", "")
            for method, path, headers in self.requests
            if method == "GET" and ("/files/" in path or "/cdn/" in path)
        ]

    def close(self) -> None:
        self._end_of_silence.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            stand_in.requests.append((self.command, self.path, headers))
            stand_in.before_answer(self.command, self.path)
            parts = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
            for words, (status, more) in stand_in.status.items():
                if words in self.path:
                    return self._send(status, b"", more)
            if stand_in.credentials and not self._is_let_in():
                return self.send_error(401)
            if parts[0] == "simple" and parts[1] in stand_in.packages:
                return self._index_page(parts[1])
            if self.path in stand_in.files:
                data = stand_in.files[self.path]
                return self._file(data, f'"{sha256(data)}"')
            if parts[:2] == ["api", "models"]:
                return self._listing(parts[2:])
            if parts[0] == "cdn":
                return self._file(stand_in.files[f"/objects/{parts[1]}"], f'"object-{parts[1]}"')
            if parts[2:3] == ["resolve"]:
                return self._hub_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            return self.send_error(404)

        do_HEAD = do_GET

        def _is_let_in(self) -> bool:
            expected = "Basic " + base64.b64encode(stand_in.credentials.encode()).decode()
            return self.headers.get("Authorization") == expected

        def _index_page(self, package: str) -> None:
            names = ["a-sdist-1.0.tar.gz", *stand_in.packages[package]]
            data = {name: stand_in.files.get(f"/files/{name}", b"") for name in names}
            if stand_in.json_pages:
                kind = "application/vnd.pypi.simple.v1+json"
                files = [
                    {
                        "filename": n,
                        "url": f"../../files/{n}",
                        "hashes": {"sha256": sha256(data[n])} if stand_in.hashes else {},
                        **({"size": len(data[n])} if stand_in.sizes else {}),
                    }
                    for n in names
                ]
                body = json.dumps({"meta": {"api-version": "1.1"}, "name": package, "files": files})
            else:
                kind = "text/html"
                fragment = {n: f"#sha256={sha256(data[n])}" if stand_in.hashes else "" for n in names}
                anchors = [f'<a href="/files/{n}{fragment[n]}" data-x="1">{n}</a><br>' for n in names]
                body = f"<!DOCTYPE html><html><body>{''.join(anchors)}</body></html>"
            self._send(200, body.encode(), {"Content-Type": kind})

        def _commit(self, repo: str, revision: str) -> str | None:
            """The commit that a revision stands for; None when that is refused, as the hub refuses it."""
            if stand_in.busy:
                stand_in.busy -= 1
                self._send(429, b"", {"Retry-After": "0"})
                return None
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if repo in stand_in.gated and token not in stand_in.gated[repo]:
                self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
                return None
            if repo not in stand_in.commits:
                self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            commit = stand_in.branches[repo].get(revision, revision)
            if commit not in stand_in.commits[repo]:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return None
            return commit

        def _listing(self, parts: list[str]) -> None:
            repo = "/".join(parts[:2])
            if (commit := self._commit(repo, parts[3] if parts[2:3] == ["revision"] else "main")) is None:
                return
            siblings = []
            for name, data in stand_in.commits[repo][commit].items():
                entry = {"rfilename": name}
                if "blobs=" in self.path and stand_in.blobs:
                    entry |= {"size": len(data), "blobId": git_blob(data)}
                    if name.endswith(LARGE):
                        entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings})
            self._send(200, body.encode(), {"Content-Type": "application/json"})

        def _hub_file(self, repo: str, revision: str, name: str) -> None:
            if (commit := self._commit(repo, revision)) is None:
                return
            if (data := stand_in.commits[repo][commit].get(name)) is None:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            headers = {"X-Repo-Commit": commit}
            if not name.endswith(LARGE):
                return self._file(data, f'"{git_blob(data)}"', headers)
            stand_in.files[f"/objects/{sha256(data)}"] = data
            linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, **linked, "Location": f"{stand_in.elsewhere}/cdn/{sha256(data)}"})

        def _file(self, data: bytes, etag: str, more: dict[str, str] | None = None) -> None:
            asked = self.headers.get("Range")
            headers = {**(more or {}), **({"ETag": etag} if stand_in.etags else {})}
            if stand_in.if_range and self.headers.get("If-Range", etag) != etag:
                asked = None
            if not (asked and stand_in.ranges):
                self._send(200, data, headers)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206, data[start:], headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            is_file = "/files/" in self.path or "/cdn/" in self.path
            length = len(body) + (stand_in.wrong_length if is_file and status == 200 else 0)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if is_file and status < 300:
                if stand_in.break_after:
                    body = body[: stand_in.break_after.pop(0)]
                    self.close_connection = True
                if stand_in.stall_after is not None:
                    self._write(body[: stand_in.stall_after])
                    stand_in._end_of_silence.wait(10)
                    return
                stand_in.sent += len(body)
            self._write(body)

        def _write(self, body: bytes) -> None:
            try:
                self.wfile.write(body)
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def wait_until(is_so: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.01)
