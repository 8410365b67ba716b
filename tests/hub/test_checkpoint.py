from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import DownloadError, UsageError

from .stand_in import StandIn


def files_of(*names: str, version: str = "") -> dict[str, bytes]:
    return {name: f"{name} {version}".encode() for name in names}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_fetched(endpoint: StandIn) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in endpoint.requests if method == "GET" and "/resolve/" in path]


def test_a_checkpoint_is_what_a_conversion_needs(endpoint: StandIn, own_home: Path) -> None:
    needed = files_of(
        *("README.md", "config.json", "tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    )
    others = files_of("pytorch_model.bin", "onnx/model.onnx", "logo.png", "../../escaped.json")
    endpoint.commit("some/repo", needed | others)
    folder = hub.pull_checkpoint("hf:some/repo")
    assert folder == own_home / "checkpoints/some/repo"
    assert contents(folder) == needed


@pytest.mark.parametrize("blobs", [True, False])
def test_what_is_there_of_a_checkpoint_is_not_fetched_again(endpoint: StandIn, own_home: Path, blobs: bool) -> None:
    endpoint.blobs = blobs
    endpoint.commit("some/repo", files_of("config.json", "pytorch_model.bin"), "v2")
    hub.pull_checkpoint("hf:some/repo@v2")
    before = len(endpoint.requests)
    folder = hub.pull_checkpoint("hf:some/repo@v2")
    assert len(endpoint.requests) == before + 1  # the listing
    assert (folder / "pytorch_model.bin").is_file()


@pytest.mark.parametrize("after", range(1, 6))
@pytest.mark.parametrize("blobs", [True, False])
def test_a_branch_that_moves_meanwhile_does_not_mix_commits(endpoint: StandIn, after: int, blobs: bool) -> None:
    endpoint.blobs = blobs
    names = ("config.json", "tokenizer.json", "model.safetensors")
    endpoint.commit("some/repo", files_of(*names, version="old"))

    def move(method: str, path: str) -> None:
        if len(endpoint.requests) == after + 1:
            endpoint.commit("some/repo", files_of(*names, version="new"))

    endpoint.before_answer = move
    assert contents(hub.pull_checkpoint("hf:some/repo")) == files_of(*names, version="old")
    assert contents(hub.pull_checkpoint("hf:some/repo")) == files_of(*names, version="new")


def test_a_stopped_checkpoint_goes_on_at_the_commit_it_began_with(endpoint: StandIn, own_home: Path) -> None:
    names = ("config.json", "tokenizer.json", "model.safetensors")
    endpoint.commit("some/repo", files_of(*names, version="old"))

    def stop(done: int, total: int, what: str) -> None:
        if what == "fetching model.safetensors" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull_checkpoint("hf:some/repo", stop)
    (half,) = hub.present()
    assert (half.name, half.state, half.is_checkpoint) == ("hf:some/repo", "incomplete", True)
    assert not (own_home / "checkpoints/some/repo/config.json").exists()  # no half checkpoint in its place
    endpoint.commit("some/repo", files_of(*names, version="new"))
    endpoint.requests.clear()
    folder = hub.pull_checkpoint("hf:some/repo")
    assert contents(folder) == files_of(*names, version="old")
    assert files_fetched(endpoint) in ([], ["model.safetensors"])
    assert [model.state for model in hub.present()] == ["installed"]


def test_a_stopped_checkpoint_whose_commit_is_gone_begins_anew(endpoint: StandIn) -> None:
    names = ("config.json", "model.safetensors")
    old = endpoint.commit("some/repo", files_of(*names, version="old"))

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull_checkpoint("hf:some/repo", stop)
    endpoint.commit("some/repo", files_of(*names, version="new"))
    del endpoint.commits["some/repo"][old]
    assert contents(hub.pull_checkpoint("hf:some/repo")) == files_of(*names, version="new")


def test_a_new_commit_fetches_what_changed_and_drops_what_is_gone(endpoint: StandIn) -> None:
    same = files_of("config.json", "model-00002-of-00002.safetensors")
    endpoint.commit("some/repo", same | files_of("model-00001-of-00002.safetensors", "vocab.txt"))
    folder = hub.pull_checkpoint("hf:some/repo")
    (folder / "notes.md").write_text("mine")
    endpoint.requests.clear()
    endpoint.commit("some/repo", same | files_of("model-00001-of-00002.safetensors", version="new"))
    hub.pull_checkpoint("hf:some/repo")
    assert files_fetched(endpoint) == ["model-00001-of-00002.safetensors"]
    new = same | files_of("model-00001-of-00002.safetensors", version="new")
    assert contents(folder) == new | {"notes.md": b"mine"}


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * len("model.safetensors "), b"longer" * 99])
def test_a_damaged_file_of_a_checkpoint_is_mended(endpoint: StandIn, damage: bytes) -> None:
    endpoint.commit("some/repo", files_of("config.json", "model.safetensors"))
    folder = hub.pull_checkpoint("hf:some/repo")
    (folder / "model.safetensors").write_bytes(damage)
    endpoint.requests.clear()
    assert contents(hub.pull_checkpoint("hf:some/repo")) == files_of("config.json", "model.safetensors")
    assert files_fetched(endpoint) == ["model.safetensors"]


def test_a_checkpoint_is_listed_and_removed(endpoint: StandIn, own_home: Path) -> None:
    served = files_of("config.json", "model.safetensors", "additional_chat_templates/t.jinja", "1_Pooling/config.json")
    endpoint.commit("some/repo", served)
    folder = hub.pull_checkpoint("hf:some/repo")
    (model,) = hub.present()
    assert (model.name, model.state, model.title) == ("hf:some/repo", "installed", "checkpoint")
    assert hub.installed() == []  # it cannot be run
    assert hub.remove("hf:some/repo") == model.n_bytes == sum(map(len, served.values()))
    assert not folder.parent.exists()


def test_a_repository_without_weights(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", files_of("config.json", "model.Q4_0.gguf"))
    with pytest.raises(DownloadError, match="no safetensors or PyTorch files; it holds GGUF files"):
        hub.pull_checkpoint("hf:some/repo")
    with pytest.raises(DownloadError, match="other/repo does not exist, or is private"):
        hub.pull_checkpoint("hf:other/repo")
    with pytest.raises(DownloadError, match="some/repo has no revision v9"):
        hub.pull_checkpoint("hf:some/repo@v9")


@pytest.mark.parametrize(
    "name", ["some/repo", "hf:repo", "hf:../repo", "hf:some/..", "hf:some/repo/file", "hf:a/b@../c"]
)
def test_names_that_are_no_checkpoints(name: str) -> None:
    with pytest.raises(UsageError, match="does not name a checkpoint"):
        hub.pull_checkpoint(name)
