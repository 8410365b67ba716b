"""edgellm run --session and edgellm cache: a conversation goes on where it was, and what is kept can be seen."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from edgellm.cli.app import main
from edgellm.engine import disk_cache
from tests.arch import tiny


@pytest.fixture(scope="module")
def chat_path(tmp_path_factory) -> Path:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    )
    return checkpoint.save(tmp_path_factory.mktemp("models") / "chat.gguf")


@pytest.fixture(autouse=True)
def nothing_on_standard_input(monkeypatch):
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def run(model: Path, *words: object) -> int:
    return main(["run", str(model), *map(str, words), "-t", "1", "-n", "8", "--temp", "0", "--no-markdown"])


def test_a_conversation_goes_on(chat_path, tmp_path, capsys) -> None:
    file = tmp_path / "talk.session"
    assert run(chat_path, "--session", file, "--system", "be brief", "the tea") == 0
    first = capsys.readouterr()
    assert "keys and values of" not in first.err
    assert run(chat_path, "--session", file, "--stats", "and more") == 0
    told = capsys.readouterr().err
    assert f"{file}: 1 turn, and keys and values of " in told.replace("\n", " ") and "(0 reused)" not in told
    import edgellm

    with edgellm.load(chat_path, n_threads=1, disk_bytes=0) as model:
        messages = json.loads(model.load_session(file).note)["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "be brief" and [m["content"] for m in messages[1::2]] == ["the tea", "and more"]
    assert messages[2]["content"] == first.out.removesuffix("\n")


def test_what_another_process_wrote_meanwhile_stays(chat_path, tmp_path, capsys, monkeypatch) -> None:
    from edgellm.cli import session

    file = tmp_path / "talk.session"
    assert run(chat_path, "--session", file, "the tea") == 0
    load = session.SessionFile.load

    def and_then_another_writes(self, model):
        found = load(self, model)
        monkeypatch.setattr(session.SessionFile, "load", load)
        assert run(chat_path, "--session", file, "the other") == 0
        return found

    monkeypatch.setattr(session.SessionFile, "load", and_then_another_writes)
    assert run(chat_path, "--session", file, "the first") == 0
    assert f"has changed it meanwhile; this conversation is kept as {tmp_path / 'talk-2.session'}" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    for name, told in (("talk", "the other"), ("talk-2", "the first")):
        assert told.encode() in (tmp_path / f"{name}.session").read_bytes()


def test_who_saves_meanwhile_is_waited_for(chat_path, tmp_path, monkeypatch, capsys) -> None:
    """Between the look at a file and its new content nobody else writes it."""
    import edgellm
    from edgellm.cli.conversation import Conversation, Turn
    from edgellm.cli.session import SessionFile
    from edgellm.files.locking import alone_at

    file, is_waiting = tmp_path / "talk.session", threading.Event()
    monkeypatch.setattr("edgellm.cli.session.note", lambda text: is_waiting.set() if "waiting" in text else None)
    with edgellm.load(chat_path, n_threads=1, disk_bytes=0) as model:
        kept = SessionFile(str(file))
        with alone_at(file, taken=lambda: None):
            monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home of another"))
            saving = threading.Thread(target=kept.save, args=(model, Conversation(None, (Turn("mine", "yes"),))))
            saving.start()
            assert is_waiting.wait(60)
            file.write_bytes(b"what another has written")
        saving.join()
    assert file.read_bytes() == b"what another has written" and kept.path == tmp_path / "talk-2.session"
    assert b"mine" in kept.path.read_bytes()


def test_where_no_lock_can_be_a_session_is_kept(chat_path, tmp_path, monkeypatch) -> None:
    def refused(path, taken):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("edgellm.cli.session.alone_at", refused)
    assert run(chat_path, "--session", tmp_path / "talk.session", "the tea") == 0
    assert (tmp_path / "talk.session").exists()


def test_a_session_that_was_deleted_meanwhile_keeps_its_name(chat_path, tmp_path, monkeypatch) -> None:
    from edgellm.cli import session

    file, load = tmp_path / "talk.session", session.SessionFile.load
    assert run(chat_path, "--session", file, "the tea") == 0

    def and_then_it_goes(self, model):
        found = load(self, model)
        file.unlink()
        return found

    monkeypatch.setattr(session.SessionFile, "load", and_then_it_goes)
    assert run(chat_path, "--session", file, "and more") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["talk.session"]


def test_a_text_without_a_conversation_is_not_overwritten(chat_path, tmp_path, capsys) -> None:
    import edgellm

    file = tmp_path / "text.session"
    with edgellm.load(chat_path, n_threads=1, disk_bytes=0) as model:
        generation = model.generate("the tea", max_tokens=4)
        list(generation)
        model.save_session(file, generation)
    before = file.read_bytes()
    assert run(chat_path, "--session", file, "and more") == 2
    assert f"{file} holds a text and no conversation" in capsys.readouterr().err.replace("\n", " ")
    assert file.read_bytes() == before


def test_a_model_without_a_template_keeps_no_conversation(tiny_path, tmp_path, capsys) -> None:
    assert run(tiny_path, "--session", tmp_path / "x.session", "the tea") == 2
    assert "--session keeps a conversation, and tiny.gguf has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "x.session").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--no-save"], "--session cannot be used with --no-save"),
        (["--raw"], "--session cannot be used with --raw"),
        (["--system", "x"], "keeps the system text"),
        ([], "no session"),
    ],
)
def test_what_contradicts_is_said(chat_path, tmp_path, capsys, words, told) -> None:
    file = tmp_path / "talk.session"
    file.write_text("something else that is there")
    assert run(chat_path, "--session", file, *words, "the tea") in (1, 2)
    assert told in capsys.readouterr().err
    assert file.read_text() == "something else that is there"


def test_what_is_kept_is_shown_and_cleared(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "prefixes"
    monkeypatch.setattr(disk_cache, "prefixes_folder", lambda: folder)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "a.kv").write_bytes(bytes(3000))
    (folder / "model" / "b.kv").write_bytes(bytes(2000))
    assert main(["cache"]) == 0
    told = capsys.readouterr().out
    assert str(folder) in told and "2 files of 1 model, 5.0 KB" in told.replace("kB", "KB")
    (model,) = folder.iterdir()
    left = model / f".{'a' * 32}.{'0' * 16}.unfinished"  # by a process that was killed
    left.touch()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path: os.stat(path / "not a folder"))
        assert main(["cache", "clear"]) == 1
        assert "cannot be removed, and is one of" in capsys.readouterr().err
    assert main(["cache", "clear"]) == 0 and not model.exists()
    assert "removed 2 files" in capsys.readouterr().out and not list(folder.rglob("*.kv"))
    assert main(["cache"]) == 0 and "0 files" in capsys.readouterr().out
