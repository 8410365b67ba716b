"""Adapters on the command line: --lora and merge."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli import main
from edgellm.measure import limits
from tests import peft_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    for seed, name in enumerate(("one", "b=0.5")):
        peft_models.save_adapter(folder, name, seed)
    peft_models.save_adapter(folder, "whole", modules_to_save=["lm_head"])
    return folder


@pytest.fixture(autouse=True)
def nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def said(capfd: Any, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    out = capfd.readouterr()
    return status, out.out, out.err.strip().splitlines()[-1] if out.err.strip() else ""


def test_answers_are_other_ones(folder: Path, capfd: Any) -> None:
    base, one, other = (str(folder / name) for name in ("base.gguf", "one", "b=0.5"))
    how = ["--raw", "-p", "def ", "-n", "8", "--temp", "0", "-t", "1"]
    answers = [
        said(capfd, "run", base, *how, *words)
        for words in ([], ["--lora", one], ["--lora", f"{one}=-2"], ["--lora", one, "--lora", other],
                      ["--lora", other], ["--lora", f"{other}=0.5"], ["--lora", f"{one}=0"])
    ]  # fmt: skip
    assert {status for status, *_ in answers} == {0}
    texts = [text for _, text, _ in answers]
    assert len(set(texts[:-1])) == len(texts) - 1 and texts[-1] == texts[0]


def test_the_merged_model_answers_as_the_model_with_its_adapter(folder: Path, tmp_path: Path, capfd: Any) -> None:
    base, one, merged = str(folder / "base.gguf"), str(folder / "one"), str(tmp_path / "merged.gguf")
    status, _, line = said(capfd, "merge", base, f"{one}=0.5", "-o", merged)
    assert status == 0 and line.startswith(f"edgellm: wrote {merged}, F32")
    how = ["--raw", "-p", "def ", "-n", "8", "--temp", "0", "-t", "1"]
    assert said(capfd, "run", merged, *how)[1] == said(capfd, "run", base, "--lora", f"{one}=0.5", *how)[1]
    status, _, line = said(capfd, "merge", base, one, "-o", merged, "--type", "q8_0")
    assert status == 0 and ", Q8_0, " in line


def test_bench_and_eval_say_what_they_measure(
    folder: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "beyond_caches", lambda least: 1 << 23)  # how quick memory is, is not looked at here
    base, one = str(folder / "base.gguf"), str(folder / "one")
    args = ["-p", "4", "-n", "2", "-r", "1", "-t", "1", "--json", "--profile"]
    found = [json.loads(said(capfd, "bench", base, *args, *words)[1]) for words in ([], ["--lora", f"{one}=0.5"])]
    assert [result["adapters"] for result in found] == [{}, {one: 0.5}]
    assert found[1]["decode_bytes_per_token"] > found[0]["decode_bytes_per_token"]
    assert any("narrow" in row["name"] for row in found[1]["profile"]["decode"]["rows"])
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 40)
    text = ["-f", str(tmp_path / "text.txt"), "-c", "32", "--chunks", "2", "-t", "1", "--json"]
    plain, adapted = (
        json.loads(said(capfd, "eval", "perplexity", base, *text, *words)[1]) for words in ([], ["--lora", one])
    )
    assert adapted["model"] == f"base.gguf + 1 x {one}" and adapted["perplexity"] != plain["perplexity"]
    lost = json.loads(said(capfd, "eval", "kl", base, "--base", base, "--lora", one, *text)[1])
    assert lost["mean"] > 0.001


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["--lora", "{one}=much"], 2, "--lora {one}=much: 'much' is no number; expected PATH or PATH=SCALE"),
        (["--lora", "{one}=inf"], 2, "--lora {one}=inf: expected PATH=SCALE, with a number below 1e+30 as SCALE"),
        (["--lora", "=2"], 2, "--lora =2: expected PATH=SCALE"),
        (["--lora", "{one}", "--lora", "{one}=2"], 2, "--lora names {one} twice"),
        (["--lora", "{folder}/nothing"], 1, "{folder}/nothing does not exist; expected a PEFT folder"),
        (["--lora", "{folder}/base.gguf"], 1, "{folder}/base.gguf: it holds a 'model', and no adapter"),
        (["--lora", "{folder}/whole=0.5"], 2, "--lora has '{folder}/whole' with a scale of 0.5"),
    ],
)
def test_what_cannot_be_put_on(folder: Path, capfd: Any, words: list[str], status: int, error: str) -> None:
    places = {"one": str(folder / "one"), "folder": str(folder)}
    typed = [word.format(**places) for word in words]
    found, out, line = said(capfd, "run", str(folder / "base.gguf"), "-p", "Hi", "--raw", *typed)
    assert (found, out) == (status, "")
    assert line.startswith(f"edgellm: error: {error.format(**places)}"), line


def test_what_cannot_be_merged(folder: Path, tmp_path: Path, capfd: Any) -> None:
    base, one = str(folder / "base.gguf"), str(folder / "one")
    for words, error in (
        ([base, one, "-o", base], "is a file that is being read"),
        ([base, f"{one}=x", "-o", str(tmp_path / "a")], f"ADAPTER {one}=x: 'x' is no number"),
        ([base, one, "-o", str(tmp_path / "a"), "--type", "Q9"], "'Q9' is no type of file"),
        ([base, base, "-o", str(tmp_path / "a")], "and no adapter"),
    ):
        status, out, line = said(capfd, "merge", *words)
        assert status in (1, 2) and out == "" and error in line, line
    assert not list(tmp_path.iterdir())
