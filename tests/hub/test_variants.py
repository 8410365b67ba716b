"""Which file of a repository is meant: hf:ORG/REPO, hf:ORG/REPO:TYPE, and what is said when it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm import hub
from edgellm.cli import main
from edgellm.errors import DownloadError, EdgellmError, FileProblem, UsageError
from edgellm.hub import store
from edgellm.hub.catalog import CHAT, CheckpointSource, HubSource, NamedModel
from edgellm.hub.names import HubName
from edgellm.hub.variants import PREFERRED, Variant, choose, type_of, variants_of

from .conftest import MODEL_BYTES
from .stand_in import StandIn


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"), ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("m.Q8_0.gguf", "Q8_0"), ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"), ("gemma-3-4b-it-f16.gguf", "F16"),
        ("m-fp16.gguf", "F16"), ("m_BF16.gguf", "BF16"), ("m.BF16-00001-of-00002.gguf", "BF16"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("BF16/m-00001-of-00002.gguf", "BF16"), ("Q4_0/m-Q8_0.gguf", "Q8_0"), ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"), ("m-Q4.gguf", "Q4"), ("model.gguf", ""), ("SQ4_0x.gguf", ""),
        ("google_gemma-3-4b-it-qat-Q4_0.gguf", "Q4_0"),
    ],
)  # fmt: skip
def test_the_type_that_a_name_says(file: str, kind: str) -> None:
    assert type_of(file) == kind


def test_what_lies_beside_models_is_none_and_shards_are_one() -> None:
    sizes = {
        "README.md": 5, "mmproj-model-f16.gguf": 9, "m.imatrix.gguf": 9, "imatrix_x.gguf": 9, "a-Q8_0.gguf": 7,
        "big/b-Q4_0-00001-of-00002.gguf": 10, "big/b-Q4_0-00002-of-00002.gguf": 5,
    }  # fmt: skip
    assert variants_of(sizes) == [
        Variant("a-Q8_0.gguf", 7, "Q8_0"),
        Variant("big/b-Q4_0-00001-of-00002.gguf", 15, "Q4_0"),
    ]


@given(st.sets(st.sampled_from(PREFERRED), min_size=1), st.randoms())
def test_the_first_of_the_preferred_types_is_taken(types: set[str], random: object) -> None:
    variants = variants_of({f"m-{kind}.gguf": 1 for kind in sorted(types)})
    chosen = choose(HubName("some/repo", None), variants)
    assert chosen.type == min(types, key=PREFERRED.index)
    for kind in types:
        for spelled in (kind, kind.lower()):
            assert choose(HubName("some/repo", None, type=spelled), variants).type == kind


def test_what_cannot_be_chosen_lists_what_there_is() -> None:
    variants = variants_of(
        {"a-Q4_K_M.gguf": 5_000_000, "b-Q4_K_M.gguf": 6_000_000, "a-IQ2_XXS.gguf": 1, "a-Q8_0.gguf": 9}
    )
    two = (
        r"^hf:o/r{} names 2 models: a-Q4_K_M\.gguf \(Q4_K_M, 5\.0 MB\), b-Q4_K_M\.gguf \(Q4_K_M, 6\.0 MB\); say which:"
    )
    for kind in ("", "Q4_K_M"):
        with pytest.raises(DownloadError, match=two.format(f":{kind}" if kind else "")):
            choose(HubName("o/r", None, type=kind), variants)
    with pytest.raises(DownloadError, match=r"^o/r has no Q4_K_S; did you mean hf:o/r:Q4_K_M\? it holds a-IQ2_XXS"):
        choose(HubName("o/r", None, type="Q4_K_S"), variants)
    with pytest.raises(
        UsageError, match=r"^a-IQ2_XXS\.gguf is of a type that edgellm cannot run; it also holds a-Q8_0"
    ):
        choose(HubName("o/r", None, type="iq2_xxs"), variants)
    with pytest.raises(DownloadError, match=r"^o/r holds no GGUF file$"):
        choose(HubName("o/r", None), [])
    assert choose(HubName("o/r", None, type="b"), variants).file == "b-Q4_K_M.gguf"  # a word of the name will do


FILES = {
    "m-Q8_0.gguf": MODEL_BYTES + b"8",
    "m-Q4_K_M.gguf": MODEL_BYTES,
    "mmproj-m-F16.gguf": b"GGUF",
    "README.md": b"#",
}


def test_a_repository_is_enough(endpoint: StandIn, own_home: Path) -> None:
    endpoint.commit("some/repo", FILES)
    said: list[str] = []
    for name in ("hf:some/repo", "https://huggingface.co/some/repo", "hf.co/some/repo:q4_k_m"):
        path = hub.pull(name, notice=said.append)
        assert path == own_home / "models/hf/some/repo/m-Q4_K_M.gguf"
        assert path.read_bytes() == MODEL_BYTES
        assert hub.resolve(name) == path
    (line,) = said
    assert line.startswith("some/repo holds 2 models; this takes m-Q4_K_M.gguf (Q4_K_M, 1.0 MB). All: m-Q4_K_M.gguf (")
    assert len(endpoint.downloads()) == 1


def test_what_is_here_is_run_without_asking_anybody(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", FILES)
    path = hub.pull("hf:some/repo:Q8_0")
    endpoint.requests.clear()
    assert hub.resolve("hf:some/repo") == hub.resolve("hf:some/repo:q8_0") == path
    assert hub.is_sound("hf:some/repo")
    with pytest.raises(
        FileProblem, match=r"hf:some/repo:Q4_K_M is not installed; get it with: edgellm pull hf:some/repo:Q4"
    ):
        hub.resolve("hf:some/repo:Q4_K_M")
    assert endpoint.requests == []
    assert hub.remove("hf:some/repo:Q8_0") == len(MODEL_BYTES) + 1


def test_a_checkpoint_says_how_it_is_converted(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(
        DownloadError, match=r"holds no GGUF file but a checkpoint: edgellm convert hf:some/repo -o MODEL"
    ):
        hub.pull("hf:some/repo")
    endpoint.commit("some/data", {"data.csv": b"1"})
    with pytest.raises(DownloadError, match=r"^some/data holds no GGUF file$"):
        hub.pull("hf:some/data")


def test_a_gated_repository_says_how_to_get_access(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.commit("some/repo", FILES)
    endpoint.gated["some/repo"] = {"hf_mine"}
    line = (
        r"^some/repo needs its licence accepted on its page, https://huggingface\.co/some/repo, and a token .*HF_TOKEN$"
    )
    for token in ("", "hf_another"):
        monkeypatch.setenv("HF_TOKEN", token)
        for name in ("hf:some/repo", "hf:some/repo/m-Q8_0.gguf"):
            with pytest.raises(DownloadError, match=line if name == "hf:some/repo" else line[1:]):
                hub.pull(name)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert hub.pull("hf:some/repo").read_bytes() == MODEL_BYTES


def test_a_branch_that_moves_between_listing_and_fetching(endpoint: StandIn) -> None:
    old = endpoint.commit("some/repo", FILES)
    moved = {name: data + b"new" for name, data in FILES.items()}

    def move(method: str, path: str) -> None:
        if "/resolve/" in path and len(endpoint.commits["some/repo"]) == 1:
            endpoint.commit("some/repo", moved)

    endpoint.before_answer = move
    assert hub.pull("hf:some/repo").read_bytes() == MODEL_BYTES + b"new"
    assert endpoint.branches["some/repo"]["main"] != old


def test_a_busy_hub_is_asked_again(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", FILES)
    endpoint.busy = 2
    assert hub.pull("hf:some/repo").read_bytes() == MODEL_BYTES
    endpoint.busy = 50
    with pytest.raises(DownloadError, match="answers 429 Too Many Requests; try again in 0 seconds"):
        hub.pull("hf:some/other")


def test_a_hub_that_becomes_busy_while_a_file_is_asked_for(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", FILES)
    asked: list[str] = []

    def become_busy(method: str, path: str) -> None:
        if method == "GET" and "/resolve/" in path:
            asked.append(path)
            endpoint.busy = 1 if len(asked) < 3 else 0

    endpoint.before_answer = become_busy
    assert hub.pull("hf:some/repo").read_bytes() == MODEL_BYTES
    assert len(asked) == 3


@pytest.fixture
def hub_model(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A model of the catalogue of which only the repository and the type are known."""
    endpoint.commit("some/repo", FILES)
    model = NamedModel(
        "tiny-1b", "", (HubSource("some/repo", "", type="Q4_K_M"),), "Tiny", "It is small.", ("tiny",), "MIT",
        about=1_000_000, memory=2_000_000, kind=CHAT,
    )  # fmt: skip
    monkeypatch.setattr(store, "catalog", lambda: {"tiny-1b": model})
    return model


def test_a_model_of_the_catalogue_of_which_only_the_type_is_known(hub_model: NamedModel, endpoint: StandIn) -> None:
    with pytest.raises(FileProblem, match="tiny-1b is not installed; get it with: edgellm pull tiny-1b"):
        hub.resolve("tiny")
    path = hub.pull("tiny")
    assert path.name == "m-Q4_K_M.gguf"
    assert hub.resolve("tiny-1b") == path
    hub.pull("hf:some/repo:Q8_0")
    assert [model.name for model in hub.installed()] == ["tiny-1b", "hf:some/repo/m-Q8_0.gguf"]
    asked = len(endpoint.downloads())
    assert hub.pull("tiny") == path
    assert len(endpoint.downloads()) == asked
    assert hub.remove("tiny") == len(MODEL_BYTES)
    assert [model.name for model in hub.installed()] == ["hf:some/repo/m-Q8_0.gguf"]


def test_a_stopped_pull_of_it_goes_on(hub_model: NamedModel, endpoint: StandIn) -> None:
    endpoint.break_after = [400_000, 0, 0, 0]
    with pytest.raises(DownloadError, match="broke"):
        hub.pull("tiny")
    (half,) = hub.present()
    assert (half.name, half.state, half.n_bytes) == ("tiny-1b", "incomplete", 400_000)
    endpoint.break_after = []
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES
    assert endpoint.downloads()[-1] == "bytes=400000-"


def test_every_model_of_the_catalogue_says_what_a_person_asks() -> None:
    for model in hub.catalog().values():
        assert model.title and model.description.endswith(".") and model.license and model.license_url, model.name
        assert model.n_bytes and model.memory > model.n_bytes and model.kind, model.name
        is_made = isinstance(model.sources[0], CheckpointSource)
        assert bool(model.size) == bool(model.sha256) == (bool(model.path) and not is_made), model.name
    spellings = [name for model in hub.catalog().values() for name in (model.name, *model.aliases)]
    assert len(spellings) == len(set(spellings))
    assert all(name == name.lower() for name in spellings)


def test_pull_of_a_repository_prints_the_path(
    endpoint: StandIn, own_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.commit("some/repo", FILES)
    assert main(["pull", "hf:some/repo"]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{own_home / 'models/hf/some/repo/m-Q4_K_M.gguf'}\n"
    assert "edgellm: some/repo holds 2 models; this takes" in shown.err
    assert main(["pull", "hf:some/repo:Q5_K_M"]) == 1
    assert capfd.readouterr().err.endswith(
        "error: some/repo has no Q5_K_M; did you mean hf:some/repo:Q4_K_M? it holds m-Q4_K_M.gguf (Q4_K_M, 1.0 MB), "
        "m-Q8_0.gguf (Q8_0, 1.0 MB)\n"
    )


@given(st.text(max_size=40))
def test_no_name_raises_anything_else_than_our_errors(name: str) -> None:
    try:
        hub.find(name)
        hub.find(f"hf:{name}")
    except EdgellmError as problem:
        assert len(str(problem)) < 3000
