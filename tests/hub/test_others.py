"""Models of Ollama, LM Studio and the Hugging Face cache, as these lay them out, found and run in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm import hub
from edgellm.cli import main
from edgellm.errors import FileProblem, UsageError
from edgellm.hub.others import models_of_others

from .conftest import MODEL_BYTES
from .stand_in import StandIn, git_blob, sha256


@pytest.fixture
def people(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's home folder, in which nobody keeps models yet."""
    folder = own_home / "people"
    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: folder)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def ollama(people: Path, name: str, data: bytes = MODEL_BYTES, *more: tuple[str, bytes], **changes: Any) -> Path:
    """Put a model where `ollama pull` does; returns its weights' file."""
    folder = people / ".ollama/models"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    layers = []
    for kind, content in (("model", data), ("template", b"{{ .Prompt }}"), ("params", b"{}"), *more):
        (folder / "blobs" / f"sha256-{sha256(content)}").write_bytes(content)
        layer = {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{sha256(content)}"}
        layers.append({**layer, "size": len(content)})
    layers[0].update(changes)
    place = folder / "manifests" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return folder / "blobs" / f"sha256-{sha256(data)}"


def test_models_of_ollama(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ollama(people, "registry.ollama.ai/library/llama3.2/1b")
    second = ollama(people, "registry.ollama.ai/library/qwen3/latest", MODEL_BYTES + b"2")
    ollama(people, "registry.ollama.ai/someone/mine/v1", MODEL_BYTES + b"3")
    ollama(people, "hf.co/some/repo/Q4_K_M", MODEL_BYTES + b"4")
    names = ["ollama:hf.co/some/repo:Q4_K_M", "ollama:llama3.2:1b", "ollama:qwen3", "ollama:someone/mine:v1"]
    assert sorted(model.name for model in hub.installed()) == names
    assert hub.resolve("ollama:llama3.2:1b") == hub.resolve("Ollama:LLAMA3.2") == first
    assert hub.resolve("ollama:qwen3:latest") == hub.resolve("ollama:qwen3") == hub.pull("ollama:qwen3") == second
    assert main(["list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ollama:llama3.2:1b")]
    assert line.split() == ["ollama:llama3.2:1b", "1.0", "MB", "elsewhere", "model", "of", "Ollama"]
    with pytest.raises(UsageError, match=r"^ollama:qwen3 belongs to Ollama, which alone may delete it$"):
        hub.remove("ollama:qwen3")
    assert second.is_file()


def test_names_of_ollama_that_are_not_there(people: Path) -> None:
    with pytest.raises(
        FileProblem, match=r"^Ollama holds no 'ollama:x' on this machine; it has none; `ollama pull x` f"
    ):
        hub.resolve("ollama:x")
    ollama(people, "registry.ollama.ai/library/qwen3/4b")
    ollama(people, "registry.ollama.ai/library/qwen3/8b", MODEL_BYTES + b"8")
    with pytest.raises(FileProblem, match=r"did you mean ollama:qwen3:4b\? it has ollama:qwen3:4b, ollama:qwen3:8b; "):
        hub.resolve("ollama:qwen3:4")
    with pytest.raises(FileProblem, match=r"^ollama:qwen3 names 2 models: ollama:qwen3:4b, ollama:qwen3:8b$"):
        hub.resolve("ollama:qwen3")
    with pytest.raises(UsageError, match=r"did you mean ollama:qwen3:4b\?"):
        hub.resolve("qwen3:4b")
    for name in ("ollama:", "ollama:../x", "ollama:\x00"):
        with pytest.raises(FileProblem, match=r"^Ollama holds no"):
            hub.resolve(name)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"digest": "sha256:../../../etc/passwd"}, "its manifest cannot be read"),
        ({"digest": "sha256:" + "0" * 64}, r"its file sha256-0+ is missing; `ollama pull` fetches it again"),
        ({"size": 5}, "its file has 1,024,004 bytes, expected 5"),
        ({"mediaType": "application/vnd.ollama.image.tensor"}, "it holds no GGUF file"),
    ],
)
def test_what_of_ollama_cannot_be_run(people: Path, changes: dict[str, Any], fault: str) -> None:
    ollama(people, "registry.ollama.ai/library/x/latest", **changes)
    with pytest.raises(FileProblem, match=f"^ollama:x: {fault}"):
        hub.resolve("ollama:x")
    assert hub.installed() == []


def test_an_adapter_of_ollama_is_not_dropped(people: Path) -> None:
    path = ollama(people, "registry.ollama.ai/library/x/latest", MODEL_BYTES, ("adapter", b"GGUF adapter"))
    with pytest.raises(
        FileProblem, match=rf"it is a model with an adapter: edgellm run {path} --lora .*/sha256-[0-9a-f]+$"
    ):
        hub.resolve("ollama:x")


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [3]}', b"[" * 100_000, b"\xff"])
def test_manifests_that_are_none(people: Path, text: bytes) -> None:
    place = people / ".ollama/models/manifests/registry.ollama.ai/library/x/latest"
    place.parent.mkdir(parents=True)
    place.write_bytes(text)
    with pytest.raises(FileProblem, match=r"^ollama:x: its manifest cannot be read$"):
        hub.resolve("ollama:x")


def test_ollama_s_own_setting_is_obeyed(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ollama(people, "registry.ollama.ai/library/x/latest")
    moved = people / "elsewhere"
    (people / ".ollama/models").rename(moved)
    monkeypatch.setenv("OLLAMA_MODELS", str(moved))
    assert hub.resolve("ollama:x") == moved / "blobs" / path.name


def test_models_of_lm_studio(people: Path) -> None:
    place = people / ".lmstudio/models/some/Repo-GGUF"
    place.mkdir(parents=True)
    (place / "m-Q4_K_M.gguf").write_bytes(MODEL_BYTES)
    (place / "mmproj-m-F16.gguf").write_bytes(b"GGUF")
    (place / "broken-Q8_0.gguf").write_bytes(b"<html>")
    name = "lmstudio:some/Repo-GGUF/m-Q4_K_M.gguf"
    assert [model.name for model in hub.installed()] == [name]
    for spelled in (name, name.lower(), "lmstudio:m-Q4_K_M.gguf", "lmstudio:m-q4_k_m"):
        assert hub.resolve(spelled) == place / "m-Q4_K_M.gguf"
    with pytest.raises(FileProblem, match=r"^lmstudio:some/repo-gguf names 2 models: "):
        hub.resolve("lmstudio:some/repo-gguf")
    (place / "broken-Q8_0.gguf").unlink()
    assert hub.resolve("lmstudio:Repo-GGUF") == hub.resolve("lmstudio:some/Repo-GGUF") == place / "m-Q4_K_M.gguf"
    (people / ".lmstudio-home-pointer").write_text(str(people / "moved"))
    (people / ".lmstudio").rename(people / "moved")
    assert hub.resolve("lmstudio:m-q4_k_m") == people / "moved/models/some/Repo-GGUF/m-Q4_K_M.gguf"


def cached(people: Path, repo: str, files: dict[str, bytes], commit: str = "a" * 40) -> Path:
    """Put files where huggingface_hub does; returns the snapshot's folder."""
    folder = people / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for place in (folder / "blobs", folder / "refs", snapshot):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text(commit)
    for name, data in files.items():
        digest = sha256(data) if name.endswith((".gguf", ".safetensors")) else git_blob(data)
        (folder / "blobs" / digest).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(folder / "blobs" / digest)
    return snapshot


def test_models_of_the_cache(people: Path) -> None:
    snapshot = cached(people, "some/repo", {"m-Q4_K_M.gguf": MODEL_BYTES, "m-Q8_0.gguf": MODEL_BYTES + b"8"})
    cached(people, "some/checkpoint", {"config.json": b"{}", "model.safetensors": b"x"})
    assert {(model.name, model.is_checkpoint) for model in hub.present()} == {
        ("hf:some/checkpoint", True), ("hf:some/repo/m-Q4_K_M.gguf", False), ("hf:some/repo/m-Q8_0.gguf", False)
    }  # fmt: skip
    for name in ("hf:some/repo", "hf:some/repo:Q4_K_M", "hf:some/repo/m-Q4_K_M.gguf", f"hf:some/repo@{'a' * 40}"):
        assert hub.resolve(name) == snapshot / "m-Q4_K_M.gguf"
    assert hub.resolve("hf:some/repo:q8_0") == snapshot / "m-Q8_0.gguf"
    with pytest.raises(FileProblem, match="hf:some/repo@v2 is not installed"):
        hub.resolve("hf:some/repo@v2")
    (snapshot / "m-Q4_K_M.gguf").resolve().unlink()  # a link to nowhere
    assert hub.resolve("hf:some/repo") == snapshot / "m-Q8_0.gguf"


def test_what_the_cache_holds_is_not_fetched_again(
    people: Path, endpoint: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    files = {"config.json": b"{}", "model.safetensors": bytes(1000), "tokenizer.json": b"{}", "model.gguf": MODEL_BYTES}
    endpoint.commit("some/repo", files)
    snapshot = cached(people, "some/repo", files)
    folder = hub.pull_checkpoint("hf:some/repo")
    assert (folder / "model.safetensors").read_bytes() == bytes(1000)
    assert hub.pull("hf:some/repo/model.gguf").read_bytes() == MODEL_BYTES
    assert endpoint.downloads() == []
    hub.remove("hf:some/repo/model.gguf")
    assert (snapshot / "model.gguf").read_bytes() == MODEL_BYTES  # theirs stays
    (snapshot / "model.safetensors").resolve().write_bytes(b"damaged")
    assert (hub.pull_checkpoint("hf:some/repo") / "model.safetensors").read_bytes() == bytes(1000)


def test_folders_that_hold_anything(people: Path) -> None:
    for place in (
        ".ollama/models/manifests/a/b/c/d",
        ".lmstudio/models/a/b/c.gguf",
        ".cache/huggingface/hub/models--a--b/x",
    ):
        (people / place).mkdir(parents=True)
    (people / ".cache/huggingface/hub/models--x").mkdir()
    (people / ".lmstudio-home-pointer").write_bytes(b"\xff\x00")
    assert models_of_others() == []
