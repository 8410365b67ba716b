from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import EdgellmError, FileProblem, UsageError
from edgellm.hub.names import parse_hub_name, parse_repository_name, shard_names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smollm2-135n", "smollm2-135m"), ("smolm2", "smollm2"), ("SmolLM-2", "smollm2"), ("gema3", "gemma3"),
        ("gemma-3-270", "gemma-3-270m"), ("gemma3_270m", "gemma3-270m"), ("smollm2-instruct", "smollm2-135m-instruct"),
        ("qwen3-4", "qwen3-4b"), ("qwen2.5-codr-1.5b", "qwen2.5-coder-1.5b"), ("mistral-7", "mistral-7b"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_suggested(own_home: Path, typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub.pull(typed)
    assert str(caught.value).startswith(f"no model is named {typed!r}; did you mean {meant}?; known are smollm2-135m")


@pytest.mark.parametrize("typed", ["", " ", "gpt-9", "\x00", "x" * 10_000, "~nobody/at/home", "..", "\ud800", "🙂"])
def test_names_that_are_near_to_nothing(own_home: Path, typed: str) -> None:
    for call in (hub.pull, hub.remove, hub.resolve):
        with pytest.raises(EdgellmError) as caught:
            assert call(typed) == Path("..")  # a folder: whoever opens it says what is wrong
            raise FileProblem("a folder")
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hf:some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("HF://some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("hf.co/some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("hf.co/some/repo:x.gguf", "hf:some/repo/x.gguf"),
        ("hf.co/some/repo", "hf:some/repo"),
        ("hf.co/some/repo:Q4_K_M", "hf:some/repo:Q4_K_M"),
        ("hf.co/some/repo:latest", "hf:some/repo"),
        ("hf:some/repo@v2:q8_0", "hf:some/repo@v2:q8_0"),
        ("huggingface:some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("https://huggingface.co/some/repo", "hf:some/repo"),
        ("https://huggingface.co/some/repo/", "hf:some/repo"),
        ("https://huggingface.co/some/repo/tree/main", "hf:some/repo"),
        ("https://huggingface.co/some/repo/tree/v1.2#files", "hf:some/repo@v1.2"),
        ("https://huggingface.co/some/repo?show_file_info=x.Q4_0.gguf", "hf:some/repo/x.Q4_0.gguf"),
        ("https://www.huggingface.co/some/repo?local-app=llama.cpp", "hf:some/repo"),
        ("https://huggingface.co/some/repo/resolve/main/x.gguf?download=true", "hf:some/repo/x.gguf"),
        ("https://huggingface.co/some/repo/blob/main/sub/x%20y.gguf", "hf:some/repo/sub/x y.gguf"),
        ("https://huggingface.co/some/repo/blob/v1.2/x.gguf", "hf:some/repo@v1.2/x.gguf"),
        ("hf:https://huggingface.co/some/repo/resolve/main/x.gguf", "hf:some/repo/x.gguf"),
        ("hf:some/repo/resolve/main/x.gguf", "hf:some/repo/x.gguf"),
        ("hf:some/repo/x.GGUF", "hf:some/repo/x.GGUF"),
    ],
)
def test_a_name_of_the_hub_in_every_spelling(typed: str, meant: str) -> None:
    parsed = parse_hub_name(typed)
    assert str(parsed) == meant
    assert str(parse_hub_name(meant)) == meant


@pytest.mark.parametrize("typed", ["https://example.org/some/repo/x.gguf", "smollm2", "hfsome/repo", "", "some/repo"])
def test_what_is_no_name_of_the_hub(typed: str) -> None:
    assert parse_hub_name(typed) is None


@pytest.mark.parametrize(
    "typed",
    ["hf:", "hf:repo", "hf:../repo", "hf:some/..", "hf:some/repo/../x.gguf", "hf:a/b:", "hf:a/b:c/d.gguf",
     "hf:a/b@../c", "https://huggingface.co/datasets/some/data", "https://huggingface.co/models?search=x",
     "hf:a/b@/x.gguf", "hf:a/b/x\ny.gguf", "hf:a/b/c:\\x.gguf", "hf:a/b/x%00.gguf", "hf:a/b/%2e%2e/x.gguf"],
)  # fmt: skip
def test_names_that_are_begun_wrongly(typed: str) -> None:
    with pytest.raises(
        UsageError, match=r"does not name a model of the Hugging Face hub; expected hf:ORG/REPO/FILE\.gguf, "
    ):
        parse_hub_name(typed)


def test_a_forgotten_ending_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"did you mean hf:some/repo/x\.gguf\?$"):
        parse_hub_name("hf:some/repo/x")


def test_a_checkpoint_is_named_by_its_repository() -> None:
    assert parse_repository_name("https://huggingface.co/some/repo").repo == "some/repo"
    for name in ("some/repo", "hf:some/repo/x.gguf", "hf:some/repo:Q4_0"):
        with pytest.raises(UsageError, match=r"does not name a checkpoint; expected hf:ORG/REPO or"):
            parse_repository_name(name)


def test_the_beginning_of_several_names_is_asked_back(own_home: Path) -> None:
    with pytest.raises(hub.NameOfSeveral) as caught:
        hub.resolve("Qwen2.5-Coder")
    assert caught.value.names == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "qwen2.5-coder-7b"]
    assert "names 3 models: qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, qwen2.5-coder-7b; say which" in str(caught.value)


def test_a_path_that_is_not_there(own_home: Path) -> None:
    (own_home / "models" / "sub").mkdir(parents=True)
    (own_home / "models" / "sub" / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileProblem, match=r"^sub/mien\.gguf: no such file; did you mean sub/mine\.gguf\?$"):
        hub.resolve("sub/mien.gguf")
    with pytest.raises(FileProblem, match=r"some/repo/x\.gguf: no such file; a file of the .* is hf:some/repo/x\.gguf"):
        hub.resolve("some/repo/x.gguf")
    with pytest.raises(FileProblem, match=r"some/repo: no such file; a repository of the .* is hf:some/repo$"):
        hub.resolve("some/repo")
    with pytest.raises(FileProblem, match=r"hf:some/repo/x\.gguf is not installed; get it with: edgellm pull"):
        hub.resolve("https://huggingface.co/some/repo/resolve/main/x.gguf")


def test_what_is_removed_and_not_here(own_home: Path) -> None:
    (own_home / "models").mkdir(parents=True)
    (own_home / "models" / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"'mien\.gguf' is not an installed .*; did you mean mine\.gguf\?; installed"):
        hub.remove("mien.gguf")
    with pytest.raises(UsageError, match=r"'smollm2' is not an installed model; installed: mine\.gguf$"):
        hub.remove("smollm2")
    for name in ("../mine.gguf", "./mine.gguf", "/mine.gguf", ".partial", ""):
        with pytest.raises(UsageError, match="is not an installed model"):
            hub.remove(name)


@pytest.mark.parametrize(
    "numbers", ["-00000-of-00003", "-00004-of-00003", "-00001-of-00000", "-00001-of-99999", "-1-of-3", ""]
)
def test_what_is_no_part_of_a_split_model(numbers: str) -> None:
    assert shard_names(f"m{numbers}.gguf") == [f"m{numbers}.gguf"]
