"""Mutated files either open or raise an EdgellmError, quickly and in little memory: no crash, no hang."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError
from edgellm.formats.gguf import GGUFFile, StringArray

from .build import raw_file, small_model

SECONDS = 2.0  # of processor time
MODELS = {version: small_model(version) for version in (2, 3)}
HEADER_BYTES = 9000  # of the small model; weights lie behind them, where anything is allowed

positions = st.integers(0, HEADER_BYTES)
small_or_huge = st.sampled_from([0, 1, 7, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
mutations = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(1, 255)),
    st.tuples(st.just("number"), positions, small_or_huge | st.integers(0, 2**64 - 1)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("delete"), positions, st.integers(1, 64)),
    st.tuples(st.just("cut"), positions, st.none()),
    st.tuples(st.just("repeat"), positions, st.integers(1, 200)),
)


def mutate(content: bytes, kind: str, at: int, how) -> bytes:
    match kind:
        case "flip":
            return content[:at] + bytes(byte ^ how for byte in content[at : at + 1]) + content[at + 1 :]
        case "number":
            return content[:at] + struct.pack("<Q", how) + content[at + 8 :]
        case "insert":
            return content[:at] + how + content[at:]
        case "delete":
            return content[:at] + content[at + how :]
        case "cut":
            return content[:at]
        case "repeat":
            return content[:at] + content[at : at + how] + content[at:]
    raise AssertionError(kind)


def open_and_use(path) -> None:
    """Open a file and look at all that is in it; an EdgellmError is a fine end."""
    try:
        with GGUFFile.open(path) as file:
            for value in file.metadata.values():
                if isinstance(value, StringArray):
                    value.as_bytes()
                    list(value)
            for tensor in file.tensors.values():
                assert tensor.dequantize().shape == tensor.shape
    except EdgellmError as error:
        assert "\n" not in str(error)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from([2, 3]), changes=st.lists(mutations, min_size=1, max_size=4))
def test_mutated_models(tmp_path, version, changes):
    content = MODELS[version]
    for change in changes:
        content = mutate(content, *change)
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    started = time.process_time()
    tracemalloc.start()
    try:
        open_and_use(path)
        assert time.process_time() - started < SECONDS
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), n_tensors=st.integers(0, 3), n_metadata=st.integers(0, 3))
def test_random_headers(tmp_path, content, n_tensors, n_metadata):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw_file([content], n_tensors=n_tensors, n_metadata=n_metadata))
    started = time.process_time()
    open_and_use(path)
    assert time.process_time() - started < SECONDS


def test_mutated_header_of_a_real_model(smollm2, tmp_path):
    """The real header, 49 thousand tokens and merges, with a few numbers overwritten; weights are zeros."""
    with GGUFFile.open(smollm2) as file:
        size = file.n_bytes
        first = min(file.tensors.values(), key=lambda t: t.address)
        header_bytes = size - sum(-(-t.n_bytes // 32) * 32 for t in file.tensors.values())
        assert first.n_bytes > 0
    header = smollm2.read_bytes()[:header_bytes]
    random = np.random.default_rng(0)
    path = tmp_path / "model.gguf"
    for i in range(40):
        changed = bytearray(header)
        # Numbers of all sizes, at the start (metadata), at the end (tensors) and in the vocabulary.
        places = (0, 2000), (len(header) - 18000, len(header) - 8), (0, len(header) - 8)
        for at in (random.integers(*place) for place in places):
            struct.pack_into("<Q", changed, at, int(random.integers(0, 2**62)) >> int(random.integers(0, 62)))
        with open(path, "wb") as file:
            file.write(changed)
            file.truncate(size if i % 4 else len(changed))
        start = time.process_time()
        try:
            GGUFFile.open(path).close()
        except EdgellmError as error:
            assert "\n" not in str(error)
        assert time.process_time() - start < 1


@pytest.mark.parametrize("version", [2, 3])
def test_the_header_of_the_small_model_is_where_the_mutations_fall(version, tmp_path):
    (tmp_path / "model.gguf").write_bytes(MODELS[version])
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        header_bytes = len(MODELS[version]) - sum(-(-t.n_bytes // 32) * 32 for t in file.tensors.values())
    assert 0.8 * HEADER_BYTES < header_bytes < 1.2 * HEADER_BYTES
