"""Whole files from strangers: each runs, whatever it says, or ends in one line; never a crash or a hang."""

from __future__ import annotations

import faulthandler
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgellm
from edgellm.errors import EdgellmError
from edgellm.formats.gguf import GGUFFile
from tests.arch import tiny

SECONDS = 2.0
FILES = ("llama", "gemma3", "Q4_K")


@pytest.fixture(scope="module", autouse=True)
def crashes_show_where():
    """A crash of machine code leaves its place in Python behind, and a hang ends."""
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hostile")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "num_hidden_layers": 1}
    paths = [
        tiny.llama(**small).save(folder / "llama.gguf"),
        tiny.gemma3(**small, num_hidden_layers=6, head_dim=16).save(folder / "gemma3.gguf"),
        tiny.llama(**wide).save(folder / "wide.gguf", "Q4_K"),
    ]
    return {name: path.read_bytes() for name, path in zip(FILES, paths, strict=True)}


def open_and_run(path) -> None:
    """Load a file, and use all that a user would; an EdgellmError of one line is a fine end."""
    started = time.perf_counter()
    try:
        with edgellm.load(path, n_threads=1, n_ctx=None) as model:
            ids = model.tokenize("the sea", add_special=True) or [1]
            logits = model.logits(ids[:20])
            assert logits.shape == (len(ids[:20]), model.n_vocab)
            for params in ({"temperature": 0.0}, {"temperature": 1.0, "repeat_penalty": 1.1, "seed": 1}):
                "".join(model.generate(ids, max_tokens=8, **params))
    except EdgellmError as error:
        assert "\n" not in str(error)
    assert time.perf_counter() - started < SECONDS


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


def header_bytes(content: bytes, tmp_path) -> int:
    path = tmp_path / "whole.gguf"
    path.write_bytes(content)
    with GGUFFile.open(path) as file:
        return len(content) - sum(-(-tensor.n_bytes // 32) * 32 for tensor in file.tensors.values())


def hostile(n: int):
    return settings(max_examples=n, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@hostile(120)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=4))
def test_changed_shapes_and_numbers(name, edits, contents, tmp_path) -> None:
    """Changes where hyperparameters stand, at the header's start."""
    content = contents[name]
    for edit in edits:
        content = changed(content, 24, 1200, edit)
    (tmp_path / "bad.gguf").write_bytes(content)
    open_and_run(tmp_path / "bad.gguf")


@hostile(80)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=4))
def test_changed_headers(name, edits, contents, tmp_path) -> None:
    content = contents[name]
    end = header_bytes(content, tmp_path)
    for edit in edits:
        content = changed(content, 0, end, edit)
    (tmp_path / "bad.gguf").write_bytes(content)
    open_and_run(tmp_path / "bad.gguf")


@hostile(60)
@given(name=st.sampled_from(FILES), edits=st.lists(changes, min_size=1, max_size=200))
def test_changed_weights(name, edits, contents, tmp_path) -> None:
    content = contents[name]
    begin = header_bytes(content, tmp_path)
    for edit in edits:
        content = changed(content, begin, len(content), edit)
    (tmp_path / "bad.gguf").write_bytes(content)
    open_and_run(tmp_path / "bad.gguf")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_weights_of_one_byte(name, byte, contents, tmp_path) -> None:
    """All zeros, the largest numbers, NaNs."""
    begin = header_bytes(contents[name], tmp_path)
    (tmp_path / "bad.gguf").write_bytes(contents[name][:begin] + bytes([byte]) * (len(contents[name]) - begin))
    open_and_run(tmp_path / "bad.gguf")


@pytest.mark.parametrize("name", FILES)
def test_random_weights(name, contents, tmp_path) -> None:
    begin = header_bytes(contents[name], tmp_path)
    for seed in range(10):
        weights = np.random.default_rng(seed).bytes(len(contents[name]) - begin)
        (tmp_path / "bad.gguf").write_bytes(contents[name][:begin] + weights)
        open_and_run(tmp_path / "bad.gguf")


@hostile(60)
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_cut_files(name, share, contents, tmp_path) -> None:
    content = contents[name][: int(share * len(contents[name]))]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(EdgellmError):
        edgellm.load(tmp_path / "bad.gguf")
