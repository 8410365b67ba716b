from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgellm import files, hub
from edgellm.errors import DownloadError, UsageError

from .conftest import MODEL_BYTES, NOBODY, StandIn


def test_a_file_of_the_hub(endpoint: StandIn, own_home: Path) -> None:
    endpoint.files["/some/repo/resolve/main/sub/model.Q4_0.gguf"] = MODEL_BYTES
    seen: list[tuple[int, int, str]] = []
    path = hub.pull("hf:some/repo/sub/model.Q4_0.gguf", lambda *step: seen.append(step))
    assert path == own_home / "models/hf/some/repo/sub/model.Q4_0.gguf"
    assert path.read_bytes() == MODEL_BYTES
    assert seen[-1] == (len(MODEL_BYTES), len(MODEL_BYTES), "fetching model.Q4_0.gguf")
    assert hub.resolve("hf:some/repo/sub/model.Q4_0.gguf") == path
    assert [p.name for p in files.models_folder().rglob("*") if p.is_file()] == ["model.Q4_0.gguf"]


def test_a_revision_is_asked_for_and_kept_apart(endpoint: StandIn, own_home: Path) -> None:
    endpoint.files["/some/repo/resolve/v1.2/model.gguf"] = MODEL_BYTES
    assert hub.pull("hf:some/repo@v1.2/model.gguf") == own_home / "models/hf/some/repo@v1.2/model.gguf"


def test_all_shards_of_a_split_model(endpoint: StandIn) -> None:
    for number in (1, 2, 3):
        endpoint.files[f"/some/repo/resolve/main/m-0000{number}-of-00003.gguf"] = MODEL_BYTES + bytes([number])
    path = hub.pull("hf:some/repo/m-00001-of-00003.gguf")
    assert sorted(p.name for p in path.parent.iterdir()) == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    (model,) = hub.installed()
    assert model.name == "hf:some/repo/m-00001-of-00003.gguf"
    assert model.n_bytes == 3 * (len(MODEL_BYTES) + 1)
    hub.remove(model.name)
    assert hub.installed() == []
    assert not path.parent.exists()


def test_a_broken_connection_is_taken_up(endpoint: StandIn) -> None:
    endpoint.files["/files/repo/resolve/main/model.gguf"] = MODEL_BYTES
    endpoint.break_after = [5000]
    assert hub.pull("hf:files/repo/model.gguf").read_bytes() == MODEL_BYTES
    assert "bytes=5000-" in endpoint.downloads()


def test_a_token_is_sent_to_the_hub(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    endpoint.files["/some/repo/resolve/main/model.gguf"] = MODEL_BYTES
    hub.pull("hf:some/repo/model.gguf")
    assert {headers.get("authorization") for _, _, headers in endpoint.requests} == {"Bearer hf_secret"}


def test_a_page_instead_of_a_model_is_refused(endpoint: StandIn) -> None:
    endpoint.files["/some/repo/resolve/main/model.gguf"] = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"model\.gguf is not a GGUF file: it begins with b'<htm'"):
        hub.pull("hf:some/repo/model.gguf")
    assert hub.installed() == []


def test_what_is_missing_or_unreachable_is_one_line(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError) as caught:
        hub.pull("hf:some/repo/missing.gguf")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    with pytest.raises(DownloadError, match="the hub cannot be asked: ") as caught:
        hub.pull("hf:some/repo/model.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "hf:", "hf:repo/model.gguf", "hf:a/b/model.bin", "hf:a/b/../../../etc/x.gguf", "hf:a/b//x.gguf",
        "hf:../b/x.gguf", "hf:a/b/x\ny.gguf", "hf:a/b/c:\\x.gguf", "hf:a/b@/x.gguf", "hf:a/b@../x.gguf",
    ],
)  # fmt: skip
def test_names_that_are_no_file_of_the_hub(name: str, own_home: Path) -> None:
    with pytest.raises(UsageError, match=r"expected hf:ORG/REPO/FILE\.gguf"):
        hub.pull(name)


def test_the_hub_tells_the_hash(endpoint: StandIn) -> None:
    data = MODEL_BYTES
    endpoint.files["/some/repo/resolve/main/model.gguf"] = data
    path = hub.pull("hf:some/repo/model.gguf")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(data).hexdigest()


def _serve_checkpoint(endpoint: StandIn, names: list[str], revision: str = "main") -> None:
    listing = {"id": "some/repo", "siblings": [{"rfilename": name} for name in names]}
    path = "/api/models/some/repo" + ("" if revision == "main" else f"/revision/{revision}")
    endpoint.files[path] = json.dumps(listing).encode()
    for name in names:
        endpoint.files[f"/some/repo/resolve/{revision}/{name}"] = name.encode()


def test_a_checkpoint_is_what_a_conversion_needs(endpoint: StandIn, own_home: Path) -> None:
    needed = ["README.md", "config.json", "tokenizer.json", "chat_template.jinja", "model-00001-of-00002.safetensors",
              "model-00002-of-00002.safetensors", "model.safetensors.index.json"]  # fmt: skip
    _serve_checkpoint(endpoint, [*needed, "pytorch_model.bin", "onnx/model.onnx", "logo.png", "../../escaped.json"])
    folder = hub.pull_checkpoint("hf:some/repo")
    assert folder == own_home / "checkpoints/some/repo"
    assert sorted(path.name for path in folder.iterdir()) == sorted(needed)
    assert all((folder / name).read_text() == name for name in needed)


def test_what_is_there_of_a_checkpoint_is_not_fetched_again(endpoint: StandIn, own_home: Path) -> None:
    _serve_checkpoint(endpoint, ["config.json", "pytorch_model.bin"], "v2")
    hub.pull_checkpoint("hf:some/repo@v2")
    before = len(endpoint.requests)
    folder = hub.pull_checkpoint("hf:some/repo@v2")
    assert len(endpoint.requests) == before + 1  # the listing
    assert (folder / "pytorch_model.bin").is_file()


def test_a_repository_without_weights(endpoint: StandIn, own_home: Path) -> None:
    _serve_checkpoint(endpoint, ["config.json", "model.Q4_0.gguf"])
    with pytest.raises(DownloadError, match="no safetensors or PyTorch files; it holds GGUF files"):
        hub.pull_checkpoint("hf:some/repo")
    with pytest.raises(DownloadError):
        hub.pull_checkpoint("hf:other/repo")


@pytest.mark.parametrize(
    "name", ["some/repo", "hf:repo", "hf:../repo", "hf:some/..", "hf:some/repo/file", "hf:a/b@../c"]
)
def test_names_that_are_no_checkpoints(name: str) -> None:
    with pytest.raises(UsageError, match="does not name a checkpoint"):
        hub.pull_checkpoint(name)
