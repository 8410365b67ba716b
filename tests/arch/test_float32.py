"""With activations="f32" nothing is rounded: what a file's weights say, in whatever format, as float32 computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS
from edgellm.quants.floats import FloatFormat
from tests.convert import checkpoints

from . import tiny

# Sums of a few hundred float32 products in another order; logits have a standard deviation near 3.
FLOAT32 = 1e-4
IDS = np.random.default_rng(5).integers(2, tiny.N_VOCAB, 3 * checkpoints.WINDOW).tolist()
BLOCKS = [name for name, fmt in FORMATS.items() if not isinstance(fmt, FloatFormat)]


def logits_of(path: Path, activations: str = "f32") -> np.ndarray:
    with edgellm.load(path, n_threads=1, kv_type="f32", activations=activations) as model:
        return model.logits(IDS)


def in_format(path: Path, to: Path, format_name: str) -> Path:
    """The same weights, matrices in another format as far as their rows allow it."""
    with GGUFFile.open(path) as file:
        entries = []
        for name, tensor in file.tensors.items():
            fmt = FORMATS[format_name]
            if len(tensor.shape) < 2 or tensor.shape[1] % fmt.block_size:
                fmt = FORMATS["F32"]
            entries.append((name, tensor.shape, fmt, fmt.quantize(tensor.dequantize())))
        GGUFWriter(to, dict(file.metadata), entries).write()
    return to


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_every_family_is_what_transformers_computes(family: str, tmp_path: Path) -> None:
    """From float weights; and from rounded ones what those are in float32."""
    model = checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "f32.gguf")
    expected = checkpoints.logits(model.double(), IDS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(logits_of(tmp_path / "f32.gguf"), expected, atol=FLOAT32)

    rounded = in_format(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "Q8_0")
    same = in_format(rounded, tmp_path / "same.gguf", "F32")
    found = logits_of(rounded)
    np.testing.assert_allclose(found, logits_of(same), atol=FLOAT32)
    assert np.abs(found - expected).max() > 10 * FLOAT32  # else there is nothing to see


USUAL = ("F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")  # tests/kernels compares all kernels with their twins
FORMAT_NAMES = [
    pytest.param(name, marks=() if name in USUAL else pytest.mark.thorough) for name in ("F16", "BF16", *BLOCKS)
]


@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_every_format_is_what_its_weights_are(format_name: str, tmp_path: Path) -> None:
    checkpoint = tiny.llama(hidden_size=256, intermediate_size=512, num_attention_heads=16)
    path = checkpoint.save(tmp_path / "format.gguf", format_name)
    expected = logits_of(in_format(path, tmp_path / "f32.gguf", "F32"))
    np.testing.assert_allclose(logits_of(path), expected, atol=FLOAT32)
    if format_name in BLOCKS:
        assert np.abs(logits_of(path, "int8") - expected).max() > 10 * FLOAT32
