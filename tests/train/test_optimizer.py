"""AdamW and clipping, beside torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.train.optimizer import PIECE, AdamW, all_finite, clip_norm

SHAPES = {"matrix": (37, 51), "long": (2, PIECE + 3), "vector": (7,), "one": (1,), "none": (0, 4)}


def arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.float32(scale) * rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("betas", "epsilon", "decay"), [((0.9, 0.999), 1e-8, 0.0), ((0.9, 0.999), 1e-8, 0.1), ((0.5, 0.9), 1e-3, 0.01)]
)
def test_ten_steps_are_those_of_torch(betas, epsilon: float, decay: float) -> None:
    torch = pytest.importorskip("torch")
    ours = arrays(0)
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in ours.items()}
    groups = [
        {"params": [theirs[name] for name in theirs if name != "vector"]},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    optimizer = AdamW(ours, betas, epsilon, decay, undecayed=["vector"])
    reference = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=epsilon, weight_decay=decay)
    for step in range(10):
        rate = 1e-3 * (1 + step)
        gradients = arrays(step + 1, scale=10.0 ** (step - 6))
        gradients["one"][:] = 0
        for group in reference.param_groups:
            group["lr"] = rate
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        optimizer.update(gradients, rate)
        reference.step()
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name].detach().numpy(), rtol=1e-6, atol=1e-6, err_msg=name)


def test_parameters_stay_where_they_are() -> None:
    parameters = arrays(0)
    before = {name: (array.__array_interface__["data"], array.copy()) for name, array in parameters.items()}
    optimizer = AdamW(parameters)
    gradients = arrays(1)
    kept = {name: array.copy() for name, array in gradients.items()}
    optimizer.update(gradients, 0.1)
    for name, array in parameters.items():
        assert array.__array_interface__["data"] == before[name][0]
        assert array.size == 0 or not np.array_equal(array, before[name][1])
        np.testing.assert_array_equal(gradients[name], kept[name])


def test_the_first_step_is_the_sign_of_the_gradient() -> None:
    parameter = np.array([1.0, 1.0, 1.0], np.float32)
    AdamW({"a": parameter}).update({"a": np.array([5e-3, -300.0, 0.0], np.float32)}, 0.25)
    np.testing.assert_allclose(parameter, [0.75, 1.25, 1.0], rtol=1e-5)


def test_what_is_not_contiguous_is_refused() -> None:
    optimizer = AdamW({"a": np.zeros((4, 4), np.float32)})
    with pytest.raises(ValueError, match="contiguous"):
        optimizer.update({"a": np.zeros((4, 4), np.float32).T}, 0.1)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("most", [0.5, 1.0, 1e3])
def test_clipping_is_that_of_torch(scale: float, most: float) -> None:
    torch = pytest.importorskip("torch")
    ours = arrays(3, scale)
    theirs = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
    for parameter, array in zip(theirs, ours.values(), strict=True):
        parameter.grad = torch.tensor(array)
    norm = clip_norm(ours, most)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, most)), rel=1e-5)
    for parameter, array in zip(theirs, ours.values(), strict=True):
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=1e-5)


def test_a_norm_of_0_only_measures() -> None:
    gradients = {"a": np.array([3e25], np.float32), "b": np.array([-4e25], np.float32)}
    assert clip_norm(gradients, 0) == pytest.approx(5e25)  # whose square is no float32
    assert gradients["a"][0] == np.float32(3e25)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, PIECE, PIECE + 4])
def test_what_is_not_finite_is_seen_wherever_it_stands(odd: float, place: int) -> None:
    array = np.ones(PIECE + 5, np.float32)
    assert all_finite({"a": array}) and all_finite({})
    array[place] = odd
    assert not all_finite({"b": np.ones(2, np.float32), "a": array})
    assert not math.isfinite(clip_norm({"a": array}, 1.0))
