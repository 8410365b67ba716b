"""The grids that block formats round weights to: all that choosing the scales of a block needs to know of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellm.dataclass import dataclass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Scales:
    """weight = (d * scale) * LEVELS[q], in `n_groups` groups of `size` weights that share an integer scale.

    levels:       ascending integers, for whole ones that follow each other and for tables of others.
    scale_range:  the lowest and the highest scale; (1, 1) where d alone is the scale of the block.
    stretch:      how far beside the outermost levels the largest weight of a group may come to lie, in levels.
    n_targets:    so many places are tried there, at either end of the levels.
    """

    n_groups: int
    size: int
    levels: tuple[int, ...]
    scale_range: tuple[int, int] = (1, 1)
    stretch: float = 1.0
    n_targets: int = 9

    @property
    def is_even(self) -> bool:
        """Whether the levels are neighbouring integers, so that rounding finds them."""
        return len(self.levels) == self.levels[-1] - self.levels[0] + 1

    @cached_property
    def middles(self) -> Floats:
        """float32: where rounding changes from one level to the next."""
        levels = np.array(self.levels, np.float32)
        return (levels[1:] + levels[:-1]) / 2

    @cached_property
    def targets(self) -> Floats:
        """float32 [2 * n_targets]: on what value the group's largest weight is put, one after the other."""
        offsets = np.linspace(-self.stretch, self.stretch, self.n_targets)
        return np.concatenate([self.levels[0] + offsets, self.levels[-1] + offsets]).astype(np.float32)


@dataclass(frozen=True)
class Lines:
    """weight = (d * scale) * q - (m * minimum), in `n_groups` groups of `size` weights with a scale and minimum each.

    q_max:      q is from 0 to q_max.
    scale_max:  scales and minima are from 0 to it; 0 where the group is the block, and d and m are its own. m then
                may have any sign.
    stretch:    the range of a group's weights is laid over q_max - stretch[0] to q_max + stretch[1] levels.
    n_targets:  so many of these are tried.
    """

    n_groups: int
    size: int
    q_max: int
    scale_max: int = 0
    stretch: tuple[float, float] = (1.0, 1.0)
    n_targets: int = 21

    @cached_property
    def targets(self) -> Floats:
        """float32 [n_targets]: over how many levels the weights of a group are spread, one after the other."""
        low, high = self.stretch
        return np.linspace(self.q_max - low, self.q_max + high, self.n_targets).astype(np.float32)


Grid = Scales | Lines


class Fitted(NamedTuple):
    """What a fit has chosen for n blocks, in the words of their grid.

    d, m and their product with scales and minima are what the file will hold: d and m are float16 numbers.
    """

    d: Floats  # float32 [n]
    m: Floats  # float32 [n]; zeros for Scales
    scale: Ints  # int8 [n, n_groups]
    minimum: Ints  # int8 [n, n_groups]
    q: Ints  # uint8 [n, n_groups * size]: the index of a level
