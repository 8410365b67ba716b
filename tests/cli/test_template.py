"""`edgellm run --template FILE|NAME`: the answer is that to the text which the template writes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arch import tiny

Run = Callable[..., subprocess.CompletedProcess]
SOURCE = "{{ bos_token }}{% for m in messages %}{{ m.role }} says {{ m.content }}\n{% endfor %}and then:"
GREEDY = ("--temp", "0", "-n", "6")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A tiny random model with a template of its own; beside it, another template."""
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    checkpoint.metadata["tokenizer.chat_template.shouts"] = (
        "{{ bos_token }}{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    )
    (tmp_path / "asked.jinja").write_text(SOURCE, encoding="utf-8")
    return checkpoint.save(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("asked", "prompt", "says"),
    [
        ("asked.jinja", "user says Hi you\nand then:", "asked.jinja"),
        ("chatml", None, "chatml, as was asked"),
        ("shouts", "HI YOU", "the file's own called shouts"),
    ],
)
def test_the_answer_is_that_to_what_it_writes(
    edgellm: Run, chat: Path, asked: str, prompt: str | None, says: str
) -> None:
    told = edgellm("run", str(chat), "--template", asked, "-v", "-p", "Hi you", *GREEDY, real=True, cwd=chat.parent)
    assert told.returncode == 0 and says in told.stderr
    if prompt is not None:  # which the model itself would begin with BOS, as these templates do
        plain = edgellm("run", str(chat), "--raw", "-p", prompt, *GREEDY, real=True)
        assert plain.returncode == 0 and told.stdout.strip() == plain.stdout.removeprefix(prompt).strip()


@pytest.mark.parametrize(
    ("source", "asked", "says"),
    [
        (None, "none.jinja", "none.jinja"),
        (None, "chatmul", "chatml"),
        ("{% for m in %}", "asked.jinja", "asked.jinja"),
        (b"\xff\xfe", "asked.jinja", "asked.jinja"),
    ],
)
def test_one_that_is_none(edgellm: Run, chat: Path, source: str | bytes | None, asked: str, says: str) -> None:
    if source is not None:
        (chat.parent / asked).write_bytes(source if isinstance(source, bytes) else source.encode())
    done = edgellm("run", str(chat), "--template", asked, "-p", "Hi", real=True, cwd=chat.parent)
    assert done.returncode in (1, 2) and not done.stdout
    (line,) = done.stderr.splitlines()
    assert says in line


def test_a_server_does_not_start_with_one(edgellm: Run, chat: Path) -> None:
    pytest.importorskip("uvicorn")
    done = edgellm("serve", f"tiny={chat}", "--port", "0", "--template", "chatmul", real=True)
    assert done.returncode in (1, 2) and "chatmul" in done.stderr.splitlines()[-1]
