"""Real models, against the `gguf` package: the same metadata, the same bytes, the same weights."""

from __future__ import annotations

import time

import gguf
import numpy as np
import pytest

from edgellm.formats.gguf import GGUFFile


def test_metadata_and_tensors_are_those_of_gguf(smollm2):
    reader = gguf.GGUFReader(smollm2)
    with GGUFFile.open(smollm2) as file:
        counts = {f"GGUF.{name}" for name in ("version", "tensor_count", "kv_count")}
        assert set(reader.fields) - set(file.metadata) == counts
        tokens = reader.fields["tokenizer.ggml.tokens"]
        ours = file.metadata["tokenizer.ggml.tokens"]
        assert len(ours) == len(tokens.data) == 49152
        assert ours[::1000] == tokens.contents(slice(None, None, 1000))
        assert [t.name for t in reader.tensors] == list(file.tensors)
        for theirs in reader.tensors:
            read = file.tensors[theirs.name]
            assert read.shape == tuple(reversed(theirs.shape.tolist()))
            assert (read.format.name, read.n_bytes) == (theirs.tensor_type.name, theirs.n_bytes)
        by_name = {t.name: t for t in reader.tensors}
        for name in ("blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight"):
            theirs = by_name[name]
            expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            np.testing.assert_array_equal(file.tensors[name].dequantize(), expected)


def test_the_start_waits_for_no_vocabulary(smollm2):
    start = time.perf_counter()
    with GGUFFile.open(smollm2) as file:
        seconds = time.perf_counter() - start
        assert len(file.metadata["tokenizer.ggml.merges"]) == 48900
    assert seconds < 0.1  # 5 ms on an idle machine


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_vocabulary_files(shared, name):
    path = shared / "vocab" / f"{name}.gguf"
    with GGUFFile.open(path) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
        assert tokens.as_bytes() == [bytes(field.parts[i]) for i in field.data]
