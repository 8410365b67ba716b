"""Copies of weights that gradients go through, and what they leave in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.engine import gradients
from edgellm.formats.pages import mapped_ranges
from edgellm.train import transposed
from edgellm.train.config import LoraConfig
from edgellm.train.documents import Documents
from edgellm.train.lora import LoraLearner
from tests.arch import tiny


@pytest.mark.parametrize("name", ["memory", "file"])
def test_what_copies_are_made_of_is_let_go(name: str, tmp_path: Path, monkeypatch) -> None:
    path = tiny.llama().save(tmp_path / "tiny.gguf", "Q8_0")
    with edgellm.load(path, layout=name, n_threads=1) as model:
        if transposed.activations_of_training(model._runner) != "int8":
            pytest.skip("with AMX there are no copies")
        released: list[str] = []
        monkeypatch.setattr(
            transposed, "release_file_pages", lambda tensors: released.extend(tensor.name for tensor in tensors)
        )
        LoraLearner(model, LoraConfig(rank=2), n_batch=8).close()
        matrices = {name for name, tensor in model._runner.tensors.items() if len(tensor.shape) == 2}
        assert set(released) == matrices - {"token_embd.weight"}  # which nothing is multiplied by


def test_a_pass_lets_go_what_layers_have_read_of_the_file(tmp_path: Path, monkeypatch) -> None:
    """Before the head begins, all of them; beside the head's weights, which it reads again for the next rows."""
    events: list[tuple[int, int] | str] = []
    monkeypatch.setattr(
        gradients, "release_pages", lambda part: events.append((part.ctypes.data, part.ctypes.data + part.nbytes))
    )
    monkeypatch.setattr(gradients, "mapped_ranges", lambda arrays: mapped_ranges(arrays, most_between=0))
    losses = gradients.GradientPasses._losses

    def noted(*args):
        events.append("head")
        return losses(*args)

    monkeypatch.setattr(gradients.GradientPasses, "_losses", noted)
    path = tiny.llama().save(tmp_path / "tiny.gguf", "F32")
    with edgellm.load(path, layout="file", n_threads=1) as model:
        learner = LoraLearner(model, LoraConfig(rank=2), n_batch=8)
        learner.negative_log_likelihoods(Documents.of(np.arange(1, 9), np.ones(8, bool)))
        learner.close()
        released = [span for span in events[: events.index("head")] if span != "head"]
        for name, tensor in model._runner.tensors.items():
            begin, end = tensor.raw.ctypes.data, tensor.raw.ctypes.data + tensor.n_bytes
            is_let_go = any(first <= begin and end <= last for first, last in released)
            if len(tensor.shape) == 2:
                assert is_let_go == name.startswith("blk."), name
