"""A tensor on its way from one file into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Part:
    """What the target holds under `name`: row i is the source's row row_order[i], plus offset.

    name:       in the target.
    tensor:     as the source holds it.
    row_order:  int32 [n_rows], for Llama's queries and keys, whose rotary pairs GGUF has as neighbours; None
                keeps the order.
    offset:     for Gemma's norms, of which checkpoints hold what they differ from one.
    """

    name: str
    tensor: Tensor
    row_order: NDArray[np.int32] | None = None
    offset: float = 0.0
