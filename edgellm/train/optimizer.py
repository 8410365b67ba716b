"""AdamW, and the clipping of gradients: what makes new weights of gradients.

Weights are changed in place, a piece at a time, so that beside the weights, their gradients and two moments there is
no other array of their size, and a piece stays in the cache for all operations on it. Each weight is treated by
itself and sums of squares are added up in float64 in one order, so the results depend on the numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.float32]]

PIECE = 1 << 15  # weights at a time


class AdamW:
    """Adam with weight decay that is decoupled from the gradient (Loshchilov & Hutter 2019), as torch computes it.

    parameters:  float32 arrays by name, contiguous, changed in place.
    undecayed:   names of parameters that weight decay leaves alone.

    `means` and `squares` are the running means of gradients and of their squares, float32 and of the parameters'
    shapes; with `step`, the updates so far, they are all that the optimizer remembers.
    """

    def __init__(
        self,
        parameters: Arrays,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        undecayed: Collection[str] = (),
    ) -> None:
        self.parameters = parameters
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.undecayed = frozenset(undecayed)
        self.means = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.squares = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.step = 0

    def update(self, gradients: Arrays, learning_rate: float) -> None:
        """One step: `gradients` are float32, of the parameters' names and shapes."""
        self.step += 1
        work = np.empty((2, PIECE), np.float32)
        for name, parameter in self.parameters.items():
            decay = 0.0 if name in self.undecayed else self.weight_decay
            arrays = (parameter, gradients[name], self.means[name], self.squares[name])
            for piece in _pieces(*arrays):
                self._update(piece, work[:, : len(piece[0])], learning_rate, decay)

    def _update(
        self, piece: tuple[NDArray[np.float32], ...], work: NDArray[np.float32], learning_rate: float, decay: float
    ) -> None:
        parameter, gradient, mean, square = piece
        one, two = work
        beta1, beta2 = self.betas
        if decay:
            parameter *= np.float32(1 - learning_rate * decay)
        np.subtract(gradient, mean, out=one)  # mean += (1 - beta1) * (gradient - mean)
        one *= np.float32(1 - beta1)
        mean += one
        square *= np.float32(beta2)  # square = beta2 * square + (1 - beta2) * gradient²
        np.multiply(gradient, gradient, out=one)
        one *= np.float32(1 - beta2)
        square += one
        # Both start from 0, which the corrections make up for: the first mean counts as the first gradient.
        np.sqrt(square, out=two)
        two /= np.float32(math.sqrt(1 - beta2**self.step))
        two += np.float32(self.epsilon)
        np.divide(mean, two, out=one)
        one *= np.float32(learning_rate / (1 - beta1**self.step))
        parameter -= one


def clip_norm(gradients: Arrays, most: float) -> float:
    """Shorten all gradients together to a norm of `most`, in place, if they are longer; gives the norm they had.

    `most` of 0 only measures. What torch's clip_grad_norm_ does, with the sum in float64.
    """
    norm = math.sqrt(sum(_sum_of_squares(array) for array in gradients.values()))
    factor = most / (norm + 1e-6) if most else 1.0
    if factor < 1 and math.isfinite(norm):
        for array in gradients.values():
            for (piece,) in _pieces(array):
                piece *= np.float32(factor)
    return norm


def all_finite(arrays: Arrays) -> bool:
    """Whether no number is infinite or NaN."""
    return all(bool(np.isfinite(piece).all()) for array in arrays.values() for (piece,) in _pieces(array))


def _sum_of_squares(array: NDArray[np.float32]) -> float:
    """In float64, whose range holds the square of every float32."""
    work = np.empty(PIECE, np.float64)
    total = 0.0
    for (piece,) in _pieces(array):
        squares = np.multiply(piece, piece, out=work[: len(piece)], dtype=np.float64)
        total += float(squares.sum())
    return total


def _pieces(*arrays: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """The same stretches of several contiguous arrays of one size, as views."""
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("parameters and gradients must be contiguous, for they are changed in place")
    flat = [array.reshape(-1) for array in arrays]
    for begin in range(0, flat[0].size, PIECE):
        yield tuple(array[begin : begin + PIECE] for array in flat)
