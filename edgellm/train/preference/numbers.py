"""Functions that the losses share, exact also far from zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_sigmoid(x: Floats) -> Floats:
    """log(1 / (1 + exp(-x)))"""
    return np.asarray(-np.logaddexp(0.0, -x))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), the derivative of -log_sigmoid(-x)."""
    return np.asarray(np.exp(log_sigmoid(x)))


def log_one_minus_exp(x: Floats) -> Floats:
    """log(1 - exp(x)) for x < 0, by the form that loses no digits there (Mächler, 2012)."""
    with np.errstate(divide="ignore"):
        return np.where(x > -np.log(2), np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
