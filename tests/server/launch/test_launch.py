"""edgellm launch: configurations of real programs, written beside what a person has there, and taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.server.launch import PROGRAMS

from ..running import Running

tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
yaml = pytest.importorskip("yaml")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's folders, with nothing in them."""
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "EDGELLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "edgellm"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def launch(small: Running, *words: str) -> None:
    assert main(["launch", *words, "--url", small.url]) == 0


READERS = {".json": json.loads, ".toml": tomllib.loads, ".yaml": yaml.safe_load}


def holds(name: str) -> dict:
    path = PROGRAMS[name].path()
    return READERS[path.suffix](path.read_text())


@pytest.mark.parametrize("name", PROGRAMS)
def test_written_and_taken_back(small: Running, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    launch(small, name)
    path = PROGRAMS[name].path()
    assert small.url in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert "--undo" in capsys.readouterr().out
    launch(small, name, "--undo")
    assert not path.exists()
    assert main(["launch", name, "--undo"]) == 1
    assert "nothing to undo" in capsys.readouterr().err


def test_what_each_is_told(small: Running) -> None:
    for name in PROGRAMS:
        launch(small, name)
    v1 = f"{small.url}/v1"
    opencode = holds("opencode")
    assert opencode["provider"]["edgellm"]["options"] == {"baseURL": v1}
    assert list(opencode["provider"]["edgellm"]["models"]) == ["tiny"]
    assert opencode["model"] == "edgellm/tiny"
    claude = holds("claude")["env"]
    assert (claude["ANTHROPIC_BASE_URL"], claude["ANTHROPIC_MODEL"]) == (small.url, "tiny")
    codex = holds("codex")
    assert codex["model_providers"][codex["model_provider"]] == {
        "name": "edgellm (local)", "base_url": v1, "wire_api": "responses"
    }  # fmt: skip
    (model,) = holds("continue")["models"]
    assert (model["provider"], model["model"], model["apiBase"]) == ("openai", "tiny", v1)
    zed = holds("zed")["language_models"]["openai_compatible"]["edgellm"]
    assert zed["api_url"] == v1
    assert zed["available_models"][0]["max_tokens"] > 0


def test_what_stood_there_stays(small: Running) -> None:
    path = PROGRAMS["claude"].path()
    path.parent.mkdir(parents=True)
    mine = {"theme": "dark", "env": {"ANTHROPIC_MODEL": "mine", "OTHER": "1"}, "permissions": {"allow": ["Read"]}}
    path.write_text(json.dumps(mine))
    launch(small, "claude")
    launch(small, "claude")  # once more changes nothing, and forgets nothing
    found = holds("claude")
    assert (found["theme"], found["env"]["OTHER"], found["env"]["ANTHROPIC_MODEL"]) == ("dark", "1", "tiny")
    launch(small, "claude", "--undo")
    assert holds("claude") == mine


def test_items_of_a_list(small: Running) -> None:
    path = PROGRAMS["continue"].path()
    path.parent.mkdir(parents=True)
    mine = {
        "name": "Mine",
        "version": "1.0.0",
        "schema": "v1",
        "models": [{"name": "other", "provider": "x", "model": "y"}],
    }
    path.write_text(yaml.safe_dump(mine, sort_keys=False))
    launch(small, "continue")
    found = holds("continue")
    assert found["name"] == "Mine"
    assert [model["name"] for model in found["models"]] == ["other", "tiny (edgellm)"]
    launch(small, "continue", "--undo")
    assert holds("continue") == mine


def test_what_was_changed_since_is_left_alone(small: Running, capsys: pytest.CaptureFixture[str]) -> None:
    launch(small, "opencode")
    path = PROGRAMS["opencode"].path()
    path.write_text(path.read_text().replace('"model": "edgellm/tiny"', '"model": "another"'))
    launch(small, "opencode", "--undo")
    assert "left alone, for it was changed since: model" in capsys.readouterr().out
    assert holds("opencode") == {"model": "another"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("zed", '{\n  // my theme\n  "theme": "One"\n}', "it has comments"),
        ("continue", "name: x  # mine\n", "it has comments"),
        ("claude", "{", "cannot be changed"),
        ("claude", "[]", "it is []; expected settings"),
        ("claude", "[" * 100_000, "cannot be changed"),
        ("claude", '{"env": 3}', "env is 3; expected settings there"),
    ],
)
def test_a_file_that_cannot_be_changed_stays(
    small: Running, name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PROGRAMS[name].path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert main(["launch", name, "--url", small.url]) == 1
    shown = capsys.readouterr()
    assert said in shown.err and f"to {path} yourself" in shown.err.replace("~", str(Path.home()))
    assert small.url in json.dumps(READERS[path.suffix](shown.out))  # what to add by hand
    assert path.read_text() == text


def test_print_writes_nothing(small: Running, capsys: pytest.CaptureFixture[str]) -> None:
    launch(small, "codex", "--print")
    assert tomllib.loads(capsys.readouterr().out)["model"] == "tiny"
    assert not PROGRAMS["codex"].path().exists()


def test_wrong_words(small: Running, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in [
        (["emacs"], "no program that edgellm knows; there are opencode,"),
        (["zed", "--url", "ftp:x"], "no address of a server"),
        (["zed", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["zed", "--url", small.url, "--model", "x"], "the server has tiny"),
    ]:
        assert main(["launch", *words]) != 0
        assert said in capsys.readouterr().err


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PROGRAMS)
