from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import EdgellmError, FileProblem, UsageError
from edgellm.hub.names import meant_on_the_hub, shard_names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smollm2-135n", "smollm2-135m"), ("smolm2", "smollm2"), ("SmolLM-2", "smollm2"), ("gema3", "gemma3"),
        ("gemma-3-270", "gemma-3-270m"), ("gemma3_270m", "gemma3-270m"), ("smollm2-instruct", "smollm2-135m-instruct"),
        ("HF:some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("https://huggingface.co/some/repo/resolve/main/x.gguf?download=true", "hf:some/repo/x.gguf"),
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
        ("hf://some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("hf.co/some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("hf.co/some/repo:x", "hf:some/repo/x.gguf"),
        ("huggingface:some/repo/x.gguf", "hf:some/repo/x.gguf"),
        ("https://huggingface.co/some/repo/blob/main/sub/x.gguf", "hf:some/repo/sub/x.gguf"),
        ("https://huggingface.co/some/repo/blob/v1.2/x.gguf", "hf:some/repo@v1.2/x.gguf"),
        ("hf:https://huggingface.co/some/repo/resolve/main/x.gguf", "hf:some/repo/x.gguf"),
        ("hf:some/repo/resolve/main/x.gguf", "hf:some/repo/x.gguf"),
        ("hf:some/repo/x", "hf:some/repo/x.gguf"),
        ("hf:some/repo/x.GGUF", "hf:some/repo/x.gguf"),
        ("hf:some/repo/../x", None),
        ("https://example.org/some/repo/x.gguf", None),
        ("hf:", None),
        ("smollm2", None),
    ],
)
def test_forms_of_other_programs(typed: str, meant: str | None) -> None:
    assert meant_on_the_hub(typed) == meant


def test_a_repository_is_not_a_file(own_home: Path) -> None:
    for call in (hub.pull, hub.resolve):
        with pytest.raises(UsageError, match=r"expected hf:ORG/REPO/FILE\.gguf.* edgellm convert hf:some/repo -o"):
            call("hf:some/repo")


def test_a_path_that_is_not_there(own_home: Path) -> None:
    (own_home / "models" / "sub").mkdir(parents=True)
    (own_home / "models" / "sub" / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileProblem, match=r"^sub/mien\.gguf: no such file; did you mean sub/mine\.gguf\?$"):
        hub.resolve("sub/mien.gguf")
    with pytest.raises(FileProblem, match=r"some/repo/x\.gguf: no such file; a file of the .* is hf:some/repo/x\.gguf"):
        hub.resolve("some/repo/x.gguf")
    with pytest.raises(FileProblem, match=r"no such file; did you mean hf:some/repo/x\.gguf\?"):
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
