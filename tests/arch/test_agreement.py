"""Every family computes what transformers computes in float32 on the same weights."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.formats.gguf import GGUFFile
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS

from . import tiny

# The logits' standard deviation is 1.5 to 4.4. Both sides round keys and values to float16; a last bit of
# float32 before that can make a last bit of float16 after it, about 0.0005 of the value.
MEAN_DIFFERENCE = 3e-4
LARGEST_DIFFERENCE = 0.02
# Quantized weights meet activations of 8 bits, in groups of 32: of the logits' standard deviation.
INT8_DIFFERENCE = 0.05

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
GEMMA_LINEAR = {"full_attention": LINEAR | {"rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip

CHECKPOINTS = {
    "llama": lambda: tiny.llama(),
    "llama, tied embeddings": lambda: tiny.llama(tie_word_embeddings=True),
    "llama, every head its own keys": lambda: tiny.llama(num_key_value_heads=4),
    "llama, one head of keys": lambda: tiny.llama(num_key_value_heads=1),
    "llama, wide heads": lambda: tiny.llama(head_dim=48),
    "llama, odd widths": lambda: tiny.llama(hidden_size=44, intermediate_size=37),
    "llama, another rope base": lambda: tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama, linear rope scaling": lambda: tiny.llama(rope_parameters=LINEAR),
    "llama 3, rope factors": lambda: tiny.llama(rope_parameters=LLAMA3),
    "gemma3": lambda: tiny.gemma3(),
    "gemma3, linear rope scaling": lambda: tiny.gemma3(rope_parameters=GEMMA_LINEAR),
    "gemma3, window of a span": lambda: tiny.gemma3(sliding_window=SPAN_TOKENS),
    "gemma3, window of one": lambda: tiny.gemma3(sliding_window=1),
}


def logits_of(path, ids) -> np.ndarray:
    with edgellm.load(path, n_threads=1) as model:
        return model.logits(ids)


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    difference = np.abs(found - expected)
    return bool(difference.mean() < MEAN_DIFFERENCE and difference.max() < LARGEST_DIFFERENCE)


def test_the_prompt_is_long_enough_to_matter(ids) -> None:
    assert len(ids) > 2 * SPAN_TOKENS > KV_BLOCK


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_same_logits_as_transformers(name, ids, tmp_path) -> None:
    checkpoint = CHECKPOINTS[name]()
    found, expected = logits_of(checkpoint.save(tmp_path / "tiny.gguf"), ids), checkpoint.logits(ids)
    np.testing.assert_array_less(np.abs(found - expected).mean(), MEAN_DIFFERENCE)
    np.testing.assert_array_less(np.abs(found - expected).max(), LARGEST_DIFFERENCE)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "llama.rope.freq_base", 9000.0),
        ("llama", "llama.attention.layer_norm_rms_epsilon", 1e-2),
        ("gemma3", "gemma3.attention.sliding_window", 49),
        ("gemma3", "gemma3.attention.sliding_window", 47),
        ("gemma3", "gemma3.rope.freq_base", 1e4),
        ("gemma3", "gemma3.rope.freq_base_swa", 9000.0),
    ],
)
def test_a_wrong_header_would_be_noticed(family, key, value, ids, tmp_path, request) -> None:
    checkpoint = request.getfixturevalue(family)
    wrong = tiny.Checkpoint(checkpoint.model, checkpoint.metadata | {key: value}, checkpoint.tensors)
    assert not agree(logits_of(wrong.save(tmp_path / "tiny.gguf"), ids), checkpoint.logits(ids))


@pytest.mark.parametrize("format_name", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_K", "IQ4_XS"])
def test_other_formats_give_what_their_weights_give_in_float32(format_name, ids, tmp_path) -> None:
    checkpoint = tiny.llama(hidden_size=256, intermediate_size=512, num_attention_heads=16)
    path = checkpoint.save(tmp_path / "format.gguf", format_name)
    with GGUFFile.open(path) as file:
        weights = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
    same = tiny.Checkpoint(checkpoint.model, checkpoint.metadata, weights).save(tmp_path / "f32.gguf")
    found, expected = logits_of(path, ids), logits_of(same, ids)
    if format_name in ("F16", "BF16"):
        assert agree(found, expected)
    assert np.abs(found - expected).mean() < INT8_DIFFERENCE * expected.std()


def test_linear_rope_scaling_as_files_of_2023_say_it(ids, tmp_path) -> None:
    checkpoint = tiny.llama(rope_parameters=LINEAR)
    expected = logits_of(checkpoint.save(tmp_path / "new.gguf"), ids)
    del checkpoint.metadata["llama.rope.scaling.type"], checkpoint.metadata["llama.rope.scaling.factor"]
    checkpoint.metadata["llama.rope.scale_linear"] = 4.0
    np.testing.assert_array_equal(logits_of(checkpoint.save(tmp_path / "old.gguf"), ids), expected)
