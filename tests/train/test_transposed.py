"""Copies of weights that gradients go through, and what they leave in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgellm
from edgellm.train import transposed
from edgellm.train.config import LoraConfig
from edgellm.train.lora import LoraLearner
from tests.arch import tiny


@pytest.mark.parametrize("name", ["memory", "file"])
def test_pages_of_the_file_are_let_go_where_tiles_are_read(name: str, tmp_path: Path, monkeypatch) -> None:
    """Making copies reads all weights from the file; without tiles, so do passes."""
    path = tiny.llama().save(tmp_path / "tiny.gguf", "Q8_0")
    with edgellm.load(path, layout=name, n_threads=1) as model:
        if transposed.activations_of_training(model._runner) != "int8":
            pytest.skip("with AMX there are no copies")
        released: list[str] = []
        monkeypatch.setattr(
            transposed, "release_file_pages", lambda tensors: released.extend(tensor.name for tensor in tensors)
        )
        LoraLearner(model, LoraConfig(rank=2), n_batch=8).close()
        read = {tensor.name for tensor in model._runner.layout.tiles}
        assert set(released) == read and bool(read) == (name == "memory")
