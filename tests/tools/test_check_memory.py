"""What a process takes is what was forecast: of models whose cache is most of it, with windows and without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm.params import RuntimeConfig
from tests.arch import tiny
from tools.check_memory import compare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere peaks count other things")

WIDE = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 256, "num_hidden_layers": 4}


@pytest.mark.parametrize(("texts", "tokens"), [(4, 1000)])
def test_several_texts_take_what_is_forecast(tmp_path: Path, texts: int, tokens: int) -> None:
    """32 KB a token: 131 MB beside a process of about as much."""
    path = tiny.llama(**WIDE).save(tmp_path / "wide.gguf")
    runtime = RuntimeConfig(tokens, n_threads=1, n_batch=128)
    said, took = compare(str(path), runtime, texts, tokens)
    cached = texts * tokens * 4 * 8 * 256 * 2 * 2
    assert said > cached
    assert said == pytest.approx(took, rel=0.05)


def test_of_a_model_with_windows_and_a_large_vocabulary(gemma3: Path) -> None:
    """Most of its layers keep what their window left behind while there is room; a text reads some embeddings."""
    said, took = compare(str(gemma3), RuntimeConfig(2048, n_threads=2), 4, 2048)
    assert said == pytest.approx(took, rel=0.05)
