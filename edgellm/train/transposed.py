"""Transposed copies of weights, in which gradients go through them as quickly as activations do.

W^T dy sums over the rows of W, across the blocks of its format. In a copy of W^T as Q8_0 the same numbers lie in rows,
and the kernels of inference do the rest. It costs a byte for each weight; what it rounds is far below the noise that
there is between one batch and the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.gradients import activations_of_training
from edgellm.engine.layout import release_file_pages
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Linear
from edgellm.quants import FORMATS
from edgellm.quants.floats import FloatFormat

if TYPE_CHECKING:
    from edgellm.arch import ModelGraphs
    from edgellm.engine.runner import Runner

FORMAT = FORMATS["Q8_0"]
ROWS = 4096  # of the original that are dequantized at a time


def transposed_for(runner: Runner, graphs: ModelGraphs) -> dict[Tensor, Tensor] | None:
    """Copies of all linears of a model; None where gradients go through the weights as they are."""
    if activations_of_training(runner) != "int8":
        return None
    linears = [node.weight for g in (graphs.body, graphs.head) for node in g.nodes if isinstance(node, Linear)]
    copies = transposed_copies(linears, runner.n_threads)
    release_file_pages(copies)
    return copies


def transposed_copies(weights: Iterable[Tensor], n_threads: int) -> dict[Tensor, Tensor]:
    """Copies [n_in, n_out] of weights [n_out, n_in], but for floats, and for rows that are no whole blocks."""
    fitting = [w for w in weights if not isinstance(w.format, FloatFormat) and w.shape[0] % FORMAT.block_size == 0]
    with ThreadPoolExecutor(n_threads) as pool:
        return dict(zip(fitting, pool.map(_transposed, fitting), strict=True))


def _transposed(weight: Tensor) -> Tensor:
    n_out, n_in = weight.shape
    raw = np.empty((n_in, FORMAT.row_bytes(n_out)), np.uint8)
    for start in range(0, n_out, ROWS):
        rows = weight.raw[start : start + ROWS]
        part = np.ascontiguousarray(weight.format.dequantize(rows).reshape(len(rows), n_in).T)
        first = FORMAT.row_bytes(start)
        raw[:, first : first + FORMAT.row_bytes(len(rows))] = FORMAT.quantize(part)
    return Tensor(f"{weight.name} transposed", (n_in, n_out), FORMAT, raw)
