"""edgellm embed: vectors and ranks of texts that were typed, piped or stand in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgellm as package
from tests.convert import encoder_checkpoints as encoders

from .conftest import Result, beside_first_start

Run = Callable[..., Result]
LINES = ["def attention(q):", "", "some words: 1 to 9"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    encoders.save(encoders.FAMILIES, "bert", folder / "model", "mean")
    encoders.as_sentence_transformers(folder / "model", "mean", {"query": "find: "})
    package.convert_checkpoint(folder / "model", folder / "bert.gguf", "F32")
    return str(folder / "bert.gguf")


@pytest.fixture(scope="module")
def vectors(bert: str) -> np.ndarray:
    with package.load(bert, n_threads=1) as model:
        return model.embed(LINES)


def rows(printed: str) -> np.ndarray:
    return np.array([[float(x) for x in line.split()] for line in printed.splitlines()], np.float32)


def test_texts_become_lines_of_numbers(edgellm: Run, bert: str, vectors: np.ndarray, tmp_path: Path) -> None:
    """To the last bit, from wherever they come."""
    done = edgellm("embed", bert, *LINES, real=True)
    assert (done.returncode, beside_first_start(done.stderr)) == (0, "")
    np.testing.assert_array_equal(rows(done.stdout), vectors)
    (tmp_path / "lines.txt").write_bytes("\r\n".join(LINES).encode() + b"\n")
    assert edgellm("embed", bert, "-f", str(tmp_path / "lines.txt"), real=True).stdout == done.stdout
    assert edgellm("embed", bert, "-f", "-", stdin="\n".join(LINES), real=True).stdout == done.stdout


def test_json_and_options(edgellm: Run, bert: str, vectors: np.ndarray) -> None:
    done = edgellm("embed", bert, "words", "--json", "--task", "query", "--dimensions", "8", real=True)
    (found,) = map(json.loads, done.stdout.splitlines())
    with package.load(bert, n_threads=1) as model:
        want = model.embed("find: words", dimensions=8)[0]
    assert found["text"] == "words"
    np.testing.assert_array_equal(np.float32(found["embedding"]), want)
    tokens = json.loads(edgellm("embed", bert, "words", "--json", "--pooling", "none", real=True).stdout)
    assert np.array(tokens["embedding"]).shape[1] == vectors.shape[1]


def test_ranking(edgellm: Run, bert: str) -> None:
    with package.load(bert, n_threads=1) as model:
        scores = model.rank("words", LINES)
    done = edgellm("embed", bert, *LINES, "--rank", "words", "--json", real=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["index"] for entry in found] == np.argsort(-scores).tolist()
    assert [entry["text"] for entry in found] == [LINES[entry["index"]] for entry in found]
    plain = edgellm("embed", bert, *LINES, "--rank", "words", real=True).stdout.splitlines()
    assert plain[0] == f"{max(scores):.4f}\t{found[0]['text']}"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "there is no text; expected some behind MODEL, or a file of them (-f, - is standard input)"),
        (["a", "-f", "b"], "texts are given twice, behind MODEL and with -f; expected one of them"),
        (["a", "--rank", "b", "--pooling", "cls"], "--pooling is about vectors, and --rank prints scores"),
        (["a", "--task", "song"], "--task is 'song', and the model has no prompt for it: it knows query"),
        (["words " * 600], "or set --truncate to leave out what comes after"),
    ],
)
def test_bad_input(edgellm: Run, bert: str, args: list[str], line: str) -> None:
    done = edgellm("embed", bert, *args, real=True)
    assert done.returncode != 0 and done.stdout == ""
    said = beside_first_start(done.stderr)
    assert said.startswith("edgellm: error: ") and line in said and said.count("\n") == 1


def test_a_chat_with_a_model_for_vectors(edgellm: Run, bert: str) -> None:
    done = edgellm("run", bert, "Hello", real=True)
    assert done.returncode == 2
    assert beside_first_start(done.stderr) == (
        "edgellm: error: bert.gguf makes vectors of texts and writes none: use embed(texts) or `edgellm embed`, or "
        "load a model for chat (`edgellm list`)\n"
    )
