"""Whole files from strangers: each runs, whatever it says, or ends in one line; never a crash or a hang."""

from __future__ import annotations

import faulthandler
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgellm
from edgellm.errors import EdgellmError
from edgellm.formats.gguf import GGUFFile
from tests.arch import tiny
from tests.spending import within

SECONDS = 2.0
FILES = ("llama", "gemma3", "Q4_K")


@pytest.fixture(scope="module", autouse=True)
def crashes_show_where():
    """A crash of machine code leaves its place in Python behind, and a hang ends."""
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class Whole:
    """A good file; so many of its bytes are the header's."""

    path: Path
    header_bytes: int

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @classmethod
    def of(cls, path: Path) -> Whole:
        with GGUFFile.open(path) as file:
            weights = sum(-(-tensor.n_bytes // 32) * 32 for tensor in file.tensors.values())
            return cls(path, file.n_bytes - weights)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, Whole]:
    folder = tmp_path_factory.mktemp("hostile")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "num_hidden_layers": 1}
    paths = [
        tiny.llama(**small).save(folder / "llama.gguf"),
        tiny.gemma3(**small, num_hidden_layers=6, head_dim=16).save(folder / "gemma3.gguf"),
        tiny.llama(**wide).save(folder / "wide.gguf", "Q4_K"),
    ]
    for path in paths:  # whatever a first start compiles and measures
        edgellm.load(path, n_threads=1).close()
    return dict(zip(FILES, map(Whole.of, paths), strict=True))


def open_and_run(path) -> None:
    """Use all of a file that a user would, in little time once its kernels are compiled."""
    within(SECONDS, lambda: used(path))


def used(path) -> None:
    """An EdgellmError of one line is a fine end."""
    try:
        with edgellm.load(path, n_threads=1) as model:
            ids = model.tokenize("the sea", add_special=True) or [1]
            logits = model.logits(ids[:20])
            assert logits.shape == (len(ids[:20]), model.n_vocab)
            for params in ({"temperature": 0.0}, {"temperature": 1.0, "repeat_penalty": 1.1, "seed": 1}):
                "".join(model.generate(ids, max_tokens=8, **params))
    except EdgellmError as error:
        assert "\n" not in str(error)


numbers = st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 31, 64, 255, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
changes = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
    st.tuples(st.just("number"), st.floats(0, 1, exclude_max=True), numbers),
    st.tuples(st.just("half"), st.floats(0, 1, exclude_max=True), st.integers(0, 2**16 - 1)),
)


def changed(content: bytes, begin: int, end: int, change: tuple[str, float, int]) -> bytes:
    """The content with something between `begin` and `end` overwritten."""
    kind, where, how = change
    at = begin + int(where * (end - begin))
    new = {"flip": "<B", "number": "<Q", "half": "<H"}[kind]
    value = content[at] ^ how if kind == "flip" else how
    return (content[:at] + struct.pack(new, value) + content[at + struct.calcsize(new) :])[: len(content)]


def hostile(n: int):
    return settings(max_examples=n, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run_changed(whole: Whole, edits: list, begin: int, end: int, tmp_path: Path) -> None:
    content = whole.content
    for edit in edits:
        content = changed(content, begin, end, edit)
    (tmp_path / "bad.gguf").write_bytes(content)
    open_and_run(tmp_path / "bad.gguf")


@hostile(200)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=4))
def test_changed_shapes_and_numbers(name, edits, whole_files, tmp_path) -> None:
    """Changes where hyperparameters stand, at the header's start."""
    run_changed(whole_files[name], edits, 24, 1000, tmp_path)


@hostile(200)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=4))
def test_changed_headers(name, edits, whole_files, tmp_path) -> None:
    run_changed(whole_files[name], edits, 0, whole_files[name].header_bytes, tmp_path)


@hostile(200)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=100))
def test_changed_weights(name, edits, whole_files, tmp_path) -> None:
    whole = whole_files[name]
    run_changed(whole, edits, whole.header_bytes, len(whole.content), tmp_path)


def run_with_weights(whole: Whole, weights: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(whole.content[: whole.header_bytes] + weights)
    open_and_run(tmp_path / "bad.gguf")


@pytest.mark.parametrize("name", FILES)
def test_weights_of_one_byte(name, whole_files, tmp_path) -> None:
    """All zeros, the largest numbers, negative zeros, NaNs."""
    whole = whole_files[name]
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        run_with_weights(whole, bytes([byte]) * (len(whole.content) - whole.header_bytes), tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_random_weights(name, whole_files, tmp_path) -> None:
    whole = whole_files[name]
    for seed in range(20):
        weights = np.random.default_rng(seed).bytes(len(whole.content) - whole.header_bytes)
        run_with_weights(whole, weights, tmp_path)


@hostile(100)
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_cut_files(name, share, whole_files, tmp_path) -> None:
    content = whole_files[name].content
    (tmp_path / "bad.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(EdgellmError):
        edgellm.load(tmp_path / "bad.gguf")
