"""Who may ask, and what is made of requests that nobody should send."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time

import httpx
import pytest

from edgellm.errors import FileProblem, UsageError
from edgellm.server.keys import Keys, new_line, read
from edgellm.server.settings import ServerConfig
from edgellm.text import ChatTemplate
from tests.spending import within

from .running import running, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
FOREIGN = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
           {"Origin": "http://127.0.0.1"}, {"Origin": "http://localhost:1"}, {"Origin": "http://[::1"}]  # fmt: skip


def test_a_host_that_is_not_ours_is_refused(small) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", ""):
        answer = small.post("/v1/chat/completions", CHAT, headers={"Host": host})
        assert answer.status_code == 403, host
        assert "--allow-host" in answer.json()["error"]["message"]
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "192.168.1.7", "LOCALHOST."):
        assert small.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_a_body_in_another_encoding_is_refused_by_its_name(small) -> None:
    raw = gzip.compress(json.dumps(CHAT).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/embeddings"):
        answer = httpx.post(f"{small.url}{path}", content=raw, headers=headers, timeout=60)
        assert answer.status_code == 415 and answer.headers["accept-encoding"] == "identity"
        assert "the body has the Content-Encoding 'gzip', which this server does not read" in answer.text
    assert small.post("/v1/chat/completions", CHAT, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_is_refused(small, headers) -> None:
    answer = small.post("/v1/chat/completions", CHAT, headers=headers)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    preflight = httpx.options(
        f"{small.url}/v1/chat/completions", headers={**headers, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code in (403, 405)
    assert not any(name.startswith("access-control") for name in preflight.headers)


def test_a_page_of_this_server_and_one_that_is_allowed_may_ask(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, allowed_origins=("http://localhost:3000",), allowed_hosts=("my.box",)) as server:
        assert server.get("/v1/models", headers={"Origin": server.url}).status_code == 200
        assert server.get("/v1/models", headers={"Host": "my.box"}).status_code == 200
        origin = {"Origin": "http://localhost:3000"}
        answer = server.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        preflight = httpx.options(
            f"{server.url}/v1/chat/completions", headers={**origin, "Access-Control-Request-Method": "POST"}
        )
        assert preflight.status_code == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"]


@pytest.mark.parametrize("asked", ["x-stainless-lang, x-stainless-os, authorization",
                                   "anthropic-dangerous-direct-browser-access,x-api-key"])  # fmt: skip
def test_an_allowed_page_may_send_the_headers_that_it_asks_for(tiny_chat, asked) -> None:
    with running({"tiny": tiny_chat}, allowed_origins=("HTTP://localhost:3000",)) as server:
        headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
        for origin, allowed in (("http://localhost:3000", asked), ("http://localhost:3001", None)):
            found = httpx.options(f"{server.url}/v1/messages", headers={**headers, "Origin": origin})
            assert found.headers.get("access-control-allow-headers") == allowed


@pytest.mark.parametrize("origin", ["notaurl", "*", "http://localhost:3000/", "http://", "http://a b"])
def test_an_origin_that_no_page_has(origin) -> None:
    with pytest.raises(UsageError, match=r"allowed_origins holds .*; expected a scheme and a host") as told:
        ServerConfig(allowed_origins=(origin,))
    assert told.value.parameter == "allowed_origins"


def test_memory_that_no_model_fits_into() -> None:
    with pytest.raises(UsageError, match="memory_bytes is 10; expected a number of at least 1048576"):
        ServerConfig(memory_bytes=10)


def test_keys(tiny_chat, tmp_path) -> None:
    key, line = new_line("ann")
    (tmp_path / "keys").write_text(f"# keys\n{line}\n")
    assert key not in line
    with running({"tiny": tiny_chat}, Keys.of(["second-key"], tmp_path / "keys")) as server:
        for headers in (
            {"Authorization": f"Bearer {key}"}, {"x-api-key": key}, {"Authorization": "bearer second-key"},
        ):  # fmt: skip
            assert server.post("/v1/chat/completions", CHAT, headers=headers).status_code == 200
        for headers in ({}, {"Authorization": f"Bearer {key}x"}, {"Authorization": f"Basic {key}"}, {"x-api-key": ""},
                        {"x-api-key": "sha256:" + line[-64:]}, {"Authorization": f"Bearer {line[-64:]}"}):  # fmt: skip
            for path in ("/v1/models", "/metrics", "/status", "/api/tags"):
                assert server.get(path, headers=headers).status_code == 401
        wrong = server.post("/v1/messages", {}, headers={"x-api-key": "no-such-key"}).json()
        assert wrong["error"]["type"] == "authentication_error"
        assert server.get("/health").status_code == 200
        assert key not in json.dumps(server.log)


def test_what_is_one_clients_is_nobody_elses(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, Keys.of(["key-of-ann", "key-of-bob"])) as server:
        ann, bob = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ann", "bob"))
        asked = {"model": "tiny", "input": "a", "max_output_tokens": 1}
        name = server.post("/v1/responses", asked, headers=ann).json()["id"]
        file = httpx.post(f"{server.url}/v1/files", headers=ann, files={"file": ("a", b"secret")},
                          data={"purpose": "batch"}).json()["id"]  # fmt: skip
        for path in (f"/v1/responses/{name}", f"/v1/files/{file}", f"/v1/files/{file}/content"):
            assert server.get(path, headers=ann).status_code == 200
            assert server.get(path, headers=bob).status_code == 404
        after = server.post("/v1/responses", {**asked, "previous_response_id": name}, headers=bob)
        assert after.status_code == 404
        assert server.get("/v1/files", headers=bob).json()["data"] == []


@pytest.mark.parametrize("text", ["ann", "ann sha256:12", "ann md5:" + "0" * 32, "", "# only this\n"])
def test_a_file_of_keys_that_is_none(tmp_path, text) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(FileProblem, match="keys"):
        read(tmp_path / "keys")


@pytest.mark.parametrize("key", ["short", "has a space in it", "umläute-umläute"])
def test_a_key_that_cannot_be_one(key) -> None:
    with pytest.raises(UsageError, match="api_key"):
        Keys.of([key])


MALFORMED = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"[]", "object"),
    (b"\xff\xfe{}", "UTF-8"),
    (b'{"model": NaN}', "NaN"),
    (b'{"model": "tiny", "model": "b"}', "twice"),
    (b"[" * 100_000, "nested"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half"),
    (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"messages": []}', "messages"),
    (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": "5"}', "max_tokens"),
    (b'{"messages": [{"role": "user", "content": "a"}], "colour": 1}', "colour"),
    (b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}', "temperature"),
    (b'{"messages": [{"role": "user", "content": "a"}], "n": 100}', "together"),
    (b'{"messages": [{"role": "user", "content": "a"}], "stop": [""]}', "stop"),
    (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"x": 1}}', "logit_bias"),
    (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"99999": 1}}', "logit_bias"),
    (b'{"messages": [{"role": "user", "content": "a"}], "grammar": "root ::= ("}', "grammar"),
    (b'{"messages": [{"role": "user", "content": 5}]}', "content"),
    (b'{"messages": [{"role": "user", "content": "a"}], "adapters": {"none": 1}}', "none"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "image_url"),
    (b'{"messages": [{"role": "assistant", "tool_calls": 5}]}', "tool_calls"),
    (b'{"model": "/etc/passwd", "messages": [{"role": "user", "content": "a"}]}', "does not exist"),
    (b'{"model": "../../etc/passwd", "messages": [{"role": "user", "content": "a"}]}', "does not exist"),
]


@pytest.mark.parametrize(("body", "what"), MALFORMED)
def test_a_body_that_cannot_be_taken_is_told_and_all_goes_on(small, body, what) -> None:
    answer = httpx.post(f"{small.url}/v1/chat/completions", content=body, timeout=60)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert what in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 1500
    assert small.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("arguments", ["{bad", 5, "[1]"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/responses"])
def test_arguments_of_a_call_that_are_no_object(small, path, arguments) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get", "arguments": arguments}}
    messages = [*CHAT["messages"], {"role": "assistant", "content": "", "tool_calls": [call]}]
    items = [*CHAT["messages"], {"type": "function_call", "call_id": "a", "name": "get", "arguments": arguments}]
    place = "input.1.arguments" if path == "/v1/responses" else "messages.1.tool_calls.0.function.arguments"
    found = small.post(path, {"model": "tiny", **({"input": items} if "input" in place else {"messages": messages})})
    assert found.status_code == 400
    assert f"{place} is " in found.text and "expected a JSON object" in found.text


def test_a_message_without_content_is_named(small) -> None:
    error = small.post("/v1/chat/completions", {**CHAT, "messages": [{"role": "user"}]}).json()["error"]
    assert error["message"] == "messages.0.content is missing; expected a text or a list of parts"
    assert error["param"] == "messages.0.content"


def test_numbers_that_are_too_large_for_any(small) -> None:
    """They could not be told as JSON again."""
    call = b'{"type": "tool_use", "id": "x", "name": "f", "input": {"x": 1e999}}'
    asked = b'{"model": "tiny", "max_tokens": 1, "messages": [{"role": "assistant", "content": [' + call + b"]}]}"
    found = httpx.post(f"{small.url}/v1/messages", content=asked, timeout=60)
    assert found.status_code == 400 and "its JSON holds the number 1e999, which is too large" in found.text
    asked = b'{"model": "tiny", "max_output_tokens": 1, "input": "a", "metadata": {"a": -1e999}}'
    found = httpx.post(f"{small.url}/v1/responses", content=asked, timeout=60)
    assert found.status_code == 400 and "-1e999" in found.text


def test_a_prompt_that_is_too_long(small) -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "abc " * 2000}]}
    error = small.post("/v1/chat/completions", long).json()["error"]
    assert error["code"] == "context_length_exceeded" and "1024" in error["message"]


def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_sought(small) -> None:
    asked = {**CHAT, "messages": [{"role": "user", "content": "word " * 2_000_000}]}
    answer = within(3, lambda: small.post("/v1/chat/completions", asked), time.monotonic)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 1}), ("/api/chat", {})],
)
def test_a_chat_of_too_many_messages_is_refused_before_it_is_rendered(small, path, more, monkeypatch) -> None:
    monkeypatch.setattr(ChatTemplate, "render", lambda *_, **__: pytest.fail("it was rendered"))
    messages = [{"role": "assistant" if n % 2 else "user", "content": "a"} for n in range(1025)]
    found = small.post(path, {"model": "tiny", "messages": messages, **more})
    assert found.status_code == 400
    assert "1025 messages, more than the context of 1024 tokens" in found.text


def test_a_body_that_is_too_large_or_too_slow(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, body_bytes=10_000, body_timeout=0.3) as server:
        assert server.post("/v1/chat/completions", {"x": "a" * 20_000}).status_code == 413

        def pieces():
            for _ in range(20):
                yield b"a" * 1000

        assert httpx.post(f"{server.url}/v1/chat/completions", content=pieces(), timeout=60).status_code == 413
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
        assert server.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405), ("GET", "/nothing", 404),
     ("GET", "/%2e%2e/a", 404),
     ("GET", "/page/../app.py", 404), ("GET", "/page/%2e%2e%2fapp.py", 404), ("GET", "/page//etc/passwd", 404)],
)  # fmt: skip
def test_addresses_that_are_none(small, method, path, status) -> None:
    answer = httpx.request(method, small.url + path, timeout=60)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_errors_have_the_shape_of_their_interface(small) -> None:
    openai, anthropic, ollama = (
        small.post(path, {"model": "no"}).json() for path in ("/v1/chat/completions", "/v1/messages", "/api/chat")
    )
    assert isinstance(openai["error"], dict)
    assert anthropic["type"] == "error" and anthropic["error"]["type"] == "invalid_request_error"
    assert isinstance(ollama["error"], str)


def test_a_model_without_a_template_continues_texts_and_does_not_chat(tiny_path) -> None:
    with running({"tiny": tiny_path}) as server:
        for path, more in (("/v1/chat/completions", {}), ("/v1/messages", {}), ("/v1/messages/count_tokens", {}),
                           ("/api/chat", {"options": {"num_predict": 2}})):  # fmt: skip
            body = {"model": "tiny", "messages": CHAT["messages"], **more}
            answer = server.post(path, body | ({"max_tokens": 2} if path == "/v1/messages" else {}))
            assert answer.status_code == 400 and "/v1/completions" in str(answer.json()["error"])
        text = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2, "temperature": 0})
        assert text.json()["usage"]["completion_tokens"] == 2
        options = {"num_predict": 2, "temperature": 0}
        told = server.post("/api/generate", {"model": "tiny", "prompt": "a", "stream": False, "options": options})
        assert told.json()["eval_count"] == 2


def test_contents_are_logged_only_if_wanted(tiny_chat) -> None:
    secret = "a quite unusual word"
    asked = {**CHAT, "messages": [{"role": "user", "content": secret}]}
    for wanted in (False, True):
        with running({"tiny": tiny_chat}, log_contents=wanted) as server:
            server.post("/v1/chat/completions", asked)
            until(lambda log=server.log: any("model" in record for record in log))
            assert (secret in json.dumps(server.log)) == wanted
            (record,) = [record for record in server.log if "model" in record]
            assert {"id", "method", "path", "status", "seconds", "prompt_tokens", "generated_tokens"} <= set(record)


def test_requests_over_one_connection_at_once(small) -> None:
    threads = [threading.Thread(target=small.post, args=("/v1/chat/completions", CHAT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert small.status()["answers_running"] == 0
