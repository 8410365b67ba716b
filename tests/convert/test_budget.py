"""Budgets: types chosen by measured loss, as good as trying all of them."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from edgellm.convert.budget import Option, measure_options, within_loss, within_size
from edgellm.convert.budgeted import Budget, quantize_within
from edgellm.convert.parts import Part
from edgellm.errors import UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS

OTHER_BYTES = 1000


def matrices(n: int, n_cols: int = 256) -> list[Part]:
    rng = np.random.default_rng(4)
    tensors = [Tensor.of(f"blk.{i}.ffn_up.weight", rng.standard_normal((8 + i, n_cols), np.float32)) for i in range(n)]
    return [Part(tensor.name, tensor) for tensor in tensors]


def losses(parts: list[Part]) -> dict[str, float]:
    """What each matrix costs for a squared error of 1: some matter a thousand times more than others."""
    return {part.name: 10.0 ** -(i % 4) for i, part in enumerate(parts)}


def measured(parts: list[Part]) -> dict[str, list[Option]]:
    sensitivity, originals = losses(parts), {part.name: part.tensor.dequantize() for part in parts}

    def divergence_with(name: str, raw: np.ndarray) -> float:
        changed = raw.view(np.float32).reshape(originals[name].shape)
        return sensitivity[name] * float(np.square(changed - originals[name]).mean())

    return measure_options(parts, divergence_with)


def test_expected_losses_are_true_where_the_model_is_quadratic() -> None:
    parts = matrices(4)
    sensitivity = losses(parts)
    for part, options in zip(parts, measured(parts).values(), strict=True):
        x = part.tensor.dequantize()
        for option in options:
            rounded = option.format.dequantize(option.format.quantize(x))
            truth = sensitivity[part.name] * float(np.square(rounded - x).mean())
            assert option.loss == pytest.approx(truth, rel=1e-3)
            assert option.n_bytes == len(x) * option.format.row_bytes(x.shape[1])


def test_options_are_worth_less_and_less() -> None:
    for options in measured(matrices(3)).values():
        gains = [(a.loss - b.loss) / (b.n_bytes - a.n_bytes) for a, b in pairwise(options)]
        assert len(options) >= 4 and gains == sorted(gains, reverse=True) and gains[-1] > 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.6, 1.0])
def test_the_least_loss_within_a_size(share: float) -> None:
    parts = matrices(4)
    options = measured(parts)
    sizes = [OTHER_BYTES + sum(found[i].n_bytes for found in options.values()) for i in (0, -1)]
    budget = int(sizes[0] + share * (sizes[1] - sizes[0]))
    plan = within_size(parts, options, OTHER_BYTES, budget)
    assert plan.n_bytes <= budget
    assert plan.loss == pytest.approx(sum(choice.option.loss for choice in plan.choices))
    best = min(
        sum(option.loss for option in combination)
        for combination in product(*options.values())
        if OTHER_BYTES + sum(option.n_bytes for option in combination) <= budget
    )
    # Steps are taken whole: at most one step of the dearest kind can be missing.
    assert plan.loss <= best + max(choice.option.loss for choice in plan.choices)


def test_the_smallest_size_within_a_loss() -> None:
    parts = matrices(4)
    options = measured(parts)
    for loss in (2e-2, 1e-2, 1e-4):
        plan = within_loss(parts, options, OTHER_BYTES, loss)
        assert plan.loss <= loss
        cheaper = [choice.smaller for choice in plan.choices if choice.smaller]
        assert cheaper
        with_less = within_size(parts, options, OTHER_BYTES, plan.n_bytes - 1)
        assert with_less.loss > plan.loss


def test_matrices_that_matter_get_more_bits() -> None:
    parts = matrices(8)
    options = measured(parts)
    plan = within_loss(parts, options, OTHER_BYTES, 1e-2)
    bits = {choice.part.name: choice.option.format.bits_per_weight for choice in plan.choices}
    assert bits["blk.0.ffn_up.weight"] > bits["blk.3.ffn_up.weight"]


def test_a_budget_too_small() -> None:
    parts = matrices(2)
    with pytest.raises(UsageError, match="smallest types"):
        within_size(parts, measured(parts), OTHER_BYTES, 1500)


def test_quantized_weights_have_no_budget() -> None:
    (part,) = matrices(1)
    fmt = FORMATS["Q8_0"]
    tensor = type(part.tensor)(part.name, part.tensor.shape, fmt, fmt.quantize(part.tensor.dequantize()))
    with pytest.raises(UsageError, match="Q8_0 already"):
        measure_options([Part(part.name, tensor)], lambda name, raw: 0.0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("90MB", Budget(n_bytes=90_000_000)), ("1.5 GiB", Budget(n_bytes=3 << 29)), ("800k", Budget(n_bytes=800_000)),
     ("123456", Budget(n_bytes=123456)), ("kl=0.03", Budget(loss=0.03)), ("KL=.5", Budget(loss=0.5))],
)  # fmt: skip
def test_budgets_as_they_are_typed(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "MB", "90XB", "-5MB", "kl=", "kl=0", "kl=-1", "kl=nan", "90MB kl=1", "1e9"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="no budget"):
        Budget.parse(text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.gguf"
    tensors = [(part.name, part.tensor.shape, part.tensor.format, part.tensor.raw) for part in matrices(4)]
    GGUFWriter(path, {"general.architecture": "llama"}, tensors).write()
    return path


def quadratic_loss(source: Path):
    """Both measurements of a model whose divergence is exactly quadratic, with a floor that no type lowers."""
    with GGUFFile.open(source) as file:
        originals = {name: tensor.dequantize() for name, tensor in file.tensors.items()}

    def of(name: str, x: np.ndarray) -> float:
        return 10.0 ** -(int(name.split(".")[1]) % 4) * float(np.square(x - originals[name]).mean())

    def with_one(name: str, raw: np.ndarray) -> float:
        return of(name, raw.view(np.float32).reshape(originals[name].shape))

    def of_file(path: Path) -> float:
        with GGUFFile.open(path) as file:
            return 0.001 + sum(of(name, tensor.dequantize()) for name, tensor in file.tensors.items())

    return with_one, of_file


def test_a_file_of_a_size(source: Path, tmp_path: Path) -> None:
    done = quantize_within(source, tmp_path / "out.gguf", Budget(n_bytes=8000), *quadratic_loss(source))
    assert done.quantized.path.stat().st_size <= 8000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


@pytest.mark.parametrize("allowed", [0.05, 0.01, 0.003])
def test_a_file_of_a_loss(source: Path, tmp_path: Path, allowed: float) -> None:
    """Measured losses count, not expected ones: here there is a floor that the plan does not know of."""
    with_one, of_file = quadratic_loss(source)
    done = quantize_within(source, tmp_path / "out.gguf", Budget(loss=allowed), with_one, of_file)
    assert of_file(tmp_path / "out.gguf") == done.loss <= allowed


def test_a_loss_that_cannot_be_met(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be met"):
        quantize_within(source, tmp_path / "out.gguf", Budget(loss=0.0005), *quadratic_loss(source))
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
