from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgellm import files, hub
from edgellm.errors import DownloadError, UsageError

from .conftest import MODEL_BYTES
from .stand_in import NOBODY, StandIn


def test_a_file_of_the_hub(endpoint: StandIn, own_home: Path) -> None:
    endpoint.commit("some/repo", {"sub/model.Q4_0.gguf": MODEL_BYTES})
    seen: list[tuple[int, int, str]] = []
    path = hub.pull("hf:some/repo/sub/model.Q4_0.gguf", lambda *step: seen.append(step))
    assert path == own_home / "models/hf/some/repo/sub/model.Q4_0.gguf"
    assert path.read_bytes() == MODEL_BYTES
    assert seen[-1] == (len(MODEL_BYTES), len(MODEL_BYTES), "fetching model.Q4_0.gguf")
    assert hub.resolve("hf:some/repo/sub/model.Q4_0.gguf") == path
    assert [p.name for p in files.models_folder().rglob("*") if p.is_file()] == ["model.Q4_0.gguf"]


def test_a_revision_is_asked_for_and_kept_apart(endpoint: StandIn, own_home: Path) -> None:
    endpoint.commit("some/repo", {"model.gguf": MODEL_BYTES}, branch="v1.2")
    assert hub.pull("hf:some/repo@v1.2/model.gguf") == own_home / "models/hf/some/repo@v1.2/model.gguf"


def test_all_shards_of_a_split_model(endpoint: StandIn) -> None:
    shards = {f"m-0000{number}-of-00003.gguf": MODEL_BYTES + bytes([number]) for number in (1, 2, 3)}
    endpoint.commit("some/repo", shards)
    path = hub.pull("hf:some/repo/m-00001-of-00003.gguf")
    assert sorted(p.name for p in path.parent.iterdir()) == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    (model,) = hub.installed()
    assert model.name == "hf:some/repo/m-00001-of-00003.gguf"
    assert model.n_bytes == 3 * (len(MODEL_BYTES) + 1)
    hub.remove(model.name)
    assert hub.installed() == []
    assert not path.parent.exists()


def test_a_broken_connection_is_taken_up(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", {"model.gguf": MODEL_BYTES})
    endpoint.break_after = [5000]
    assert hub.pull("hf:some/repo/model.gguf").read_bytes() == MODEL_BYTES
    assert "bytes=5000-" in endpoint.downloads()


def test_a_token_is_sent_to_the_hub(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    endpoint.commit("some/repo", {"model.gguf": MODEL_BYTES})
    hub.pull("hf:some/repo/model.gguf")
    sent = {("/cdn/" in path, headers.get("authorization")) for _, path, headers in endpoint.requests}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}  # a host that the hub leads to does not get it


def test_a_page_instead_of_a_model_is_refused(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", {"model.gguf": b"<html>please log in</html>"})
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
    endpoint.commit("some/repo", {"model.gguf": data})
    path = hub.pull("hf:some/repo/model.gguf")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(data).hexdigest()
