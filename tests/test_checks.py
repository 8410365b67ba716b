"""The functions of the public face that take paths and names: what cannot be one is refused by its parameter's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm import checks
from edgellm.errors import EdgellmError, UsageError
from tests.arch import tiny

ODD = [None, 5, True, 0.5, b"x", "", [], {"a": 1}, "no/such", "a\0b", "x" * 5000, object(), Path("no/such")]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "good.gguf")


def calls(good: Path, out: Path, odd: Any) -> dict[str, tuple[str, Callable[[], object]]]:
    """Every parameter with something odd in its place: its name, and the call."""
    target = out / "out.gguf"
    return {
        "convert path": ("path", lambda: edgellm.convert_checkpoint(odd, target)),
        "convert target": ("target", lambda: edgellm.convert_checkpoint(good, odd)),
        "convert type": ("type_name", lambda: edgellm.convert_checkpoint(good, target, odd)),
        "convert base": ("base", lambda: edgellm.convert_checkpoint(good, target, base=odd)),
        "convert tokenizer": ("tokenizer", lambda: edgellm.convert_checkpoint(good, target, tokenizer=odd)),
        "convert overrides": ("overrides", lambda: edgellm.convert_checkpoint(good, target, overrides=odd)),
        "convert threads": ("n_threads", lambda: edgellm.convert_checkpoint(good, target, n_threads=odd)),
        "quantize source": ("source", lambda: edgellm.quantize_file(odd, target, "Q8_0")),
        "quantize target": ("target", lambda: edgellm.quantize_file(good, odd, "Q8_0")),
        "quantize type": ("type_name", lambda: edgellm.quantize_file(good, target, odd)),
        "quantize overrides": ("overrides", lambda: edgellm.quantize_file(good, target, "Q8_0", overrides=odd)),
        "quantize importance": ("importance", lambda: edgellm.quantize_file(good, target, "Q8_0", importance=odd)),
        "quantize threads": ("n_threads", lambda: edgellm.quantize_file(good, target, "Q8_0", n_threads=odd)),
        "quantize progress": ("progress", lambda: edgellm.quantize_file(good, target, "Q8_0", progress=odd)),
        "export source": ("source", lambda: edgellm.export_checkpoint(odd, out / "folder")),
        "export folder": ("folder", lambda: edgellm.export_checkpoint(good, odd)),
        "export dtype": ("dtype", lambda: edgellm.export_checkpoint(good, out / "folder", odd)),
        "export progress": ("progress", lambda: edgellm.export_checkpoint(good, out / "folder", "f16", odd)),
        "pull name": ("name", lambda: edgellm.pull(odd)),
        "pull progress": ("progress", lambda: edgellm.pull("no such model", odd)),
        "pull notice": ("notice", lambda: edgellm.pull("no such model", notice=odd)),
    }


def works_or_says_why(name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except EdgellmError as error:
        assert error.parameter in (None, name) and "\n" not in str(error)


@pytest.mark.parametrize("odd", ODD, ids=[repr(odd)[:12] for odd in ODD])
def test_what_is_odd_is_refused_or_works(odd: Any, good: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, call in calls(good, tmp_path, odd).values():
        works_or_says_why(name, call)


def test_what_is_said(good: Path, tmp_path: Path) -> None:
    for call, name, text in [
        (
            lambda: edgellm.export_checkpoint(good, tmp_path / "a", "F64"),
            "dtype",
            "'F64'; expected one of f16, bf16, f32",
        ),
        (lambda: edgellm.quantize_file(None, "a", "Q8_0"), "source", "None; expected a path"),  # type: ignore[arg-type]
        (lambda: edgellm.quantize_file(good, "", "Q8_0"), "target", "''; expected a path"),
        (lambda: edgellm.quantize_file(good, "a", 8), "type_name", "8; expected a text (str)"),  # type: ignore[arg-type]
        (
            lambda: edgellm.quantize_file(good, "a", "F16", overrides="q=F32"),
            "overrides",
            "'q=F32'; expected a list of .*",
        ),
        (lambda: edgellm.pull(b"name"), "name", "b'name'; expected a text (str)"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(UsageError) as error:
            call()
        assert error.value.parameter == name and str(error.value).startswith(f"{name} is {text.removesuffix('.*')}")


def test_sizes() -> None:
    sizes = {"1000": 1000, "90MB": 90_000_000, "1.5GiB": 3 << 29, "2g": 2 * 10**9, " 64 kib ": 1 << 16, "1T": 10**12}
    assert {text: checks.size(text) for text in sizes} == sizes
    assert [checks.size(text) for text in ("", "1x", "-5", "GB", "1e9", "kl=0.1")] == [None] * 6
