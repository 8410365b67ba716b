"""edgellm batch: every request has one answer, whatever happens on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.cli import batch_files
from edgellm.cli.app import main
from tests.arch import tiny


@pytest.fixture(scope="module")
def chat_path(tmp_path_factory) -> Path:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    return checkpoint.save(tmp_path_factory.mktemp("models") / "chat.gguf")


def request(custom_id: str, model: Path | None, content: str = "the tea", **body) -> str:
    named = {"model": str(model)} if model else {}
    asked = {**named, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked})


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*words: object) -> int:
    return main(["batch", *map(str, words), "-t", "1", "--disk-bytes", "0"])


def test_every_request_is_answered(chat_path, tmp_path, capsys) -> None:
    asked = tmp_path / "in.jsonl"
    lines = [request(f"r{i}", chat_path, "the tea " * (i + 1), max_tokens=3 + i) for i in range(12)]
    lines[4] += "\n"  # an empty line
    asked.write_text("\n".join(lines))
    assert run(asked, "-o", tmp_path / "out.jsonl", "--parallel", 4) == 0
    found = answers(tmp_path / "out.jsonl")
    assert sorted(one["custom_id"] for one in found) == sorted(f"r{i}" for i in range(12))
    for one in found:
        body = one["response"]["body"]
        assert one["error"] is None and one["response"]["status_code"] == 200
        assert body["object"] == "chat.completion" and body["choices"][0]["message"]["role"] == "assistant"
        assert body["usage"]["completion_tokens"] == 3 + int(one["custom_id"][1:])
    assert run(asked, "-o", tmp_path / "out.jsonl") == 0  # nothing is left to do
    assert answers(tmp_path / "out.jsonl") == found
    assert "all 12 requests are answered already" in capsys.readouterr().err


def test_what_is_wrong_with_a_request_is_its_answer(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        request("good", chat_path),
        "not json",
        "[1, 2]",
        json.dumps({"custom_id": 5, "body": {"messages": []}}),
        request("long", chat_path, "the tea " * 5000),
        request("unknown", chat_path, wrong_word=1),
        request("hot", chat_path, temperature="very"),
        request("good", chat_path),
        json.dumps({"custom_id": "u", "url": "/v1/embeddings", "body": {"messages": []}}),
        request("streams", chat_path, stream=True),
        request("else", Path("other-model")),
        '{"custom_id": "twice", "custom_id": "twice", "body": {"messages": []}}',
        request("last", chat_path, n=2),
    ]
    asked.write_text("\n".join(lines) + "\n")
    assert run(asked, "-o", out) == 0
    found = {one["id"]: one for one in answers(out)}
    assert set(found) == {f"batch_req_{i}" for i in range(1, len(lines) + 1)}
    good = [one["custom_id"] for one in found.values() if one["response"] and one["response"]["status_code"] == 200]
    assert sorted(good) == ["good", "last"] and len(found["batch_req_13"]["response"]["body"]["choices"]) == 2

    def told(number: int) -> str:
        one = found[f"batch_req_{number}"]
        return one["error"]["message"] if one["error"] else one["response"]["body"]["error"]["message"]

    expected = {2: "line 2 is not JSON", 3: "expected an object", 4: "custom_id is 5", 5: "context", 6: "wrong_word",
                7: "temperature", 8: "line 1 has the custom_id 'good' too", 9: "/v1/embeddings", 10: "stream",
                11: "other-model",
                12: "twice"}  # fmt: skip
    for number, words in expected.items():
        assert words in told(number), (number, told(number))


def test_killed_it_goes_on_without_losing_or_repeating_a_line(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    n = 60
    asked.write_text("\n".join(request(f"r{i}", chat_path, f"the tea {i}", max_tokens=200) for i in range(n)))
    words = [sys.executable, "-m", "edgellm", "batch", str(asked), "-o", str(out), "-t", "1", "--disk-bytes", "0"]
    n_kills = 0
    for _ in range(40):
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (out.read_bytes().count(b"\n") if out.exists() else 0) < before + 8:
                time.sleep(0.002)
            if process.poll() is not None:
                assert process.returncode == 0
                break
            process.kill()
        n_kills += 1
        if n_kills == 1:  # as if a line had been cut
            with open(out, "ab") as file:
                file.write(b'{"id": "batch_req_77", "custom_')
    assert n_kills >= 2
    assert sorted(one["custom_id"] for one in answers(out)) == sorted(f"r{i}" for i in range(n))


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "holds no request"), (b"\n\n", "holds no request"), (None, "no such file")]
)
def test_what_holds_no_requests_is_said(tmp_path, capsys, content, words) -> None:
    asked = tmp_path / "in.jsonl"
    if content is not None:
        asked.write_bytes(content)
    assert run(asked, "-o", tmp_path / "out.jsonl") == 1
    assert words in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


def test_another_file_is_not_written_to(chat_path, tmp_path, capsys) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(request("a", chat_path))
    out.write_text("my notes\n")
    assert run(asked, "-o", out) == 2 and "something else than answers" in capsys.readouterr().err
    assert out.read_text() == "my notes\n"
    assert run(asked, "-o", asked) == 2
    asked.write_text(request("a", None))
    assert run(asked, "-o", tmp_path / "new.jsonl") == 2 and "no request names a model" in capsys.readouterr().err


FOREIGN = [
    b'{"my": "precious data"}',
    b"\0" * 3000,
    b"text",
    b'{"id": "batch_req_1", "custom_id": "a"}\n',
    b'{"id": "batch_req_1", "custom_id": "a", "response": "yes"}\n',
    b'{"id": "batch_req_1", "custom_id": "a", "response": {"body": 5}}\n',
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_without_a_newline_is_not_taken_for_a_cut_answer(chat_path, tmp_path, capsys, content: bytes) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(request("a", chat_path))
    out.write_bytes(content)
    assert run(asked, "-o", out) == 2
    assert "holds something else than answers to in.jsonl" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_answers_to_other_requests_are_not_gone_on_with(chat_path, tmp_path, capsys) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(request(name, chat_path) for name in "ab"))
    assert run(asked, "-o", out) == 0
    kept = out.read_bytes()

    def refused(lines: list[str], *words: object) -> str:
        asked.write_text("\n".join(lines))
        assert run(asked, "-o", out, *words) == 2
        assert out.read_bytes() == kept
        return capsys.readouterr().err

    assert "line 1 was 'a', and in in.jsonl it is 'z'" in refused([request("z", chat_path), request("b", chat_path)])
    assert "line 2 was 'b', and in in.jsonl it is no request" in refused([request("a", chat_path)])
    other = tmp_path / "other.gguf"
    other.write_bytes(chat_path.read_bytes())
    lines = [request(name, chat_path) for name in "abc"]
    assert f"and these would be answers of {other}" in refused(lines, "-m", other).replace("\n", " ")


def test_answers_name_the_model_that_wrote_them(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(request("a", Path("of-somebody-else")))
    assert run(asked, "-o", out, "-m", chat_path) == 0
    assert answers(out)[0]["response"]["body"]["model"] == str(chat_path)


@pytest.mark.parametrize("words", [["-m", "no-such-model"], [], ["-m", "MODEL", "--lora", "no-such-adapter"]])
def test_a_run_without_an_answer_leaves_no_file(chat_path, tmp_path, words: list[str]) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "new" / "folders" / "out.jsonl"
    asked.write_text(request("a", None))
    assert run(asked, "-o", out, *[str(chat_path) if word == "MODEL" else word for word in words]) in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    out.parent.mkdir(parents=True)  # what was there stays
    out.touch()
    assert run(asked, "-o", out, *[str(chat_path) if word == "MODEL" else word for word in words]) in (1, 2)
    assert out.exists()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("beginning", ["", "\n"])
def test_characters_of_several_bytes_are_refused(chat_path, tmp_path, capsys, encoding: str, beginning: str) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_bytes((beginning + "\n".join(request(name, chat_path) for name in "ab")).encode(encoding))
    assert run(asked, "-o", out) == 1
    assert f"{asked} is no UTF-8, but looks like UTF-16 or UTF-32; save it as UTF-8" in capsys.readouterr().err
    assert not out.exists()


def test_a_mark_of_utf_8_is_no_part_of_a_request_and_another_encoding_is_told(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [request("a", chat_path).encode("utf-8-sig"), request("b", chat_path).encode("utf-16-be"), b'{"\xe9": 1}']
    asked.write_bytes(b"\n".join(lines))
    assert run(asked, "-o", out) == 0
    found = {one["id"]: one for one in answers(out)}
    assert found["batch_req_1"]["response"]["status_code"] == 200
    assert "line 2 is not JSON" in found["batch_req_2"]["error"]["message"]
    assert "line 3 is not UTF-8 (its byte 3); expected" in found["batch_req_3"]["error"]["message"]


def test_when_nothing_could_be_answered_the_status_says_so(chat_path, tmp_path) -> None:
    asked = tmp_path / "in.jsonl"
    asked.write_text("\n".join([request("a", chat_path, temperature=-1), request("b", chat_path, extra_body=5)]))
    with pytest.raises(SystemExit) as ended:
        run(asked, "-o", tmp_path / "out.jsonl")
    assert ended.value.code == 1
    told = {one["custom_id"]: one["response"] for one in answers(tmp_path / "out.jsonl")}
    assert [told[name]["status_code"] for name in "ab"] == [400, 400]
    assert "extra_body is 5; expected a dict" in told["b"]["body"]["error"]["message"]


def test_the_status_is_that_of_all_answers_in_however_many_runs(chat_path, tmp_path, capsys) -> None:
    """What was stopped and gone on with ends as what was not."""
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join([request("good", chat_path), request("bad", chat_path, temperature=-1)]))
    assert run(asked, "-o", out) == 0
    out.write_text("".join(line for line in out.read_text().splitlines(keepends=True) if '"good"' in line))
    assert run(asked, "-o", out) == 0  # nothing new but an error
    assert "1 of 2 requests could not be answered" in capsys.readouterr().err
    out.write_text("".join(line for line in out.read_text().splitlines(keepends=True) if '"bad"' in line))
    capsys.readouterr()
    assert run(asked, "-o", out) == 0
    assert "1 of 2 requests could not be answered" in capsys.readouterr().err  # of the run before
    asked.write_text(request("bad", chat_path, temperature=-1))
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            run(asked, "-o", tmp_path / "bad.jsonl")
        assert ended.value.code == 1 and "1 of 1 requests could not be" in capsys.readouterr().err


def test_a_long_answer_is_kept(chat_path, tmp_path, monkeypatch) -> None:
    """Answers may be longer than any request: none is taken for one that was cut."""
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [request(name, chat_path, logprobs=name == "b", max_tokens=9) for name in "abc"]
    asked.write_text("\n".join(lines))
    assert run(asked, "-o", out) == 0
    kept = out.read_bytes().splitlines(keepends=True)
    most = max(len(line) for line in lines) + 100
    assert max(len(line) for line in kept) > 2 * most
    monkeypatch.setattr(batch_files, "MOST_LINE", most)
    out.write_bytes(b"".join(kept[:2]))
    assert run(asked, "-o", out) == 0
    assert out.read_bytes().startswith(b"".join(kept[:2])) and len(answers(out)) == 3


def test_an_answer_that_lacks_only_its_line_end_is_kept(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(request(name, chat_path) for name in "ab"))
    assert run(asked, "-o", out) == 0
    first = out.read_bytes().splitlines()[0]
    out.write_bytes(first)
    assert run(asked, "-o", out) == 0
    assert out.read_bytes().startswith(first + b"\n") and len(answers(out)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_a_full_disk_keeps_the_answers_before(chat_path, tmp_path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(request(f"r{i}", chat_path) for i in range(40)))
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
    program = limited + "from edgellm.cli.app import main; sys.exit(main(sys.argv[1:]))"
    words = ["batch", asked, "-o", out, "-t", "1", "--disk-bytes", "0"]
    # -B: what Python keeps of the modules that it imports would be cut off as well, and fail in every later process.
    command = [sys.executable, "-B", "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{out}: File too large; the answers before are kept" in done.stderr
    n_kept = len(answers(out))
    assert 0 < n_kept < 40 and out.read_bytes().endswith(b"\n")
    assert run(asked, "-o", out) == 0 and len(answers(out)) == 40


def test_what_is_no_file_of_requests_is_said(tmp_path, capsys) -> None:
    assert run(tmp_path, "-o", tmp_path / "out") == 1
    assert f"{tmp_path} is a folder; expected a file" in capsys.readouterr().err
    asked = tmp_path / "in.jsonl"
    asked.write_bytes(request("a", None).encode("utf-16"))
    assert run(asked, "-o", tmp_path / "out") == 1
    assert f"{asked} is no UTF-8, but looks like UTF-16" in capsys.readouterr().err
    asked.write_text("null\n")
    assert run(asked, "-o", tmp_path / "out") == 1
    assert "holds no request that could be answered: line 1 is null; expected an object" in capsys.readouterr().err
    assert run(asked, "-o", "-") == 2
    assert "-o is -; expected the name of a file" in capsys.readouterr().err


def test_answers_go_on_when_the_context_is_full(chat_path, tmp_path) -> None:
    """By the option for all of them, or by a request for itself; and never without an end."""
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        request("long", chat_path, max_tokens=200, logit_bias={"2": -100}),
        request("own", chat_path, max_tokens=200, logit_bias={"2": -100}, extra_body={"when_full": "stop"}),
        json.dumps({"custom_id": "endless", "body": {"messages": [{"role": "user", "content": "the tea"}]}}),
    ]
    asked.write_text("\n".join(lines))
    assert run(asked, "-o", out, "-m", chat_path, "-c", 64, "--when-full", "shift") == 0
    found = {one["custom_id"]: one["response"] for one in answers(out)}
    usage = {name: found[name]["body"]["usage"] for name in ("long", "own")}
    assert usage["long"]["completion_tokens"] == 200 and usage["long"]["context_shifts"] > 3
    assert usage["own"]["completion_tokens"] < 64 and "context_shifts" not in usage["own"]
    assert found["endless"]["status_code"] == 400 and "may never end" in str(found["endless"]["body"])
    asked.write_text(
        request("own", chat_path, max_tokens=100, logit_bias={"2": -100}, extra_body={"when_full": "shift"})
    )
    assert run(asked, "-o", tmp_path / "own.jsonl", "-c", 64) == 0
    assert answers(tmp_path / "own.jsonl")[0]["response"]["body"]["usage"]["context_shifts"]
