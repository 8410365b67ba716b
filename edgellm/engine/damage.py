"""Why a model gives no numbers: which of its weights are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.errors import FileProblem
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.kernels.kv_types import F32_CACHE, CacheType

MOST_NAMED = 3  # tensors
PIECE_BYTES = 1 << 22  # of a tensor, looked at together


def no_numbers(file: GGUFFile, kv_type: CacheType, adapters: AdapterSet = NO_ADAPTERS) -> FileProblem:
    """The error of a model whose logits are NaN or infinite. Looks at all weights, to name what is damaged.

    adapters:  what was beside the model.
    """
    reason = _reason(file.tensors.values(), kv_type, adapters)
    return FileProblem(f"{file.path}: its logits are no finite numbers: {reason}")


def _reason(tensors: Iterable[Tensor], kv_type: CacheType, adapters: AdapterSet) -> str:
    damaged = [tensor.name for tensor in tensors if not is_finite(tensor)]
    if not damaged and adapters:
        used = ", ".join(f"{adapter.name!r} (scale {scale:g})" for adapter, scale in adapters.uses)
        return f"its weights are, so what the adapters add is too large: {used}; try smaller scales, or leave them out"
    if not damaged:
        larger = "" if kv_type == F32_CACHE else ", and kv_type='f32' keeps larger keys and values"
        return f"its weights are, but too large to compute with; the file may be damaged{larger}"
    names = ", ".join(repr(name) for name in damaged[:MOST_NAMED])
    more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
    return f"NaN or infinity stands in {'tensor' if len(damaged) == 1 else 'the tensors'} {names}{more}"


def is_finite(tensor: Tensor) -> bool:
    """Whether all weights of a tensor are finite numbers."""
    return all(np.isfinite(part).all() for piece in _pieces(tensor) for part in _floats_of(tensor, piece))


def _pieces(tensor: Tensor) -> Iterator[np.ndarray]:
    raw, block_bytes = tensor.raw.reshape(-1), tensor.format.block_bytes
    step = max(1, PIECE_BYTES // block_bytes) * block_bytes
    for start in range(0, len(raw), step):
        yield raw[start : start + step]


def _floats_of(tensor: Tensor, piece: np.ndarray) -> Iterator[np.ndarray]:
    """The floats among the bytes of some blocks, which alone can be NaN or infinite; else the weights themselves."""
    layout = tensor.format.layout
    names = [name for name in layout.names or () if layout[name].base.kind == "f"]
    blocks = piece.view(layout)
    yield from (blocks[name] for name in names)
    if not names:
        yield tensor.format.dequantize(piece)
