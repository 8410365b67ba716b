"""Parts of adapters that are no low-rank weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgellm.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PlainActivation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: tuple[PlainActivation, ...] = ("relu", "gelu", "silu")
MOST_VIRTUAL = 4096  # learnt tokens before a text


@dataclass(frozen=True, eq=False)
class LayerPrefix:
    """Learnt keys and values of one layer, which every text finds before it (prefix tuning; Li and Liang, 2021).

    keys, values:  float32 [n_virtual, n_kv_heads * head_dim]; keys as they are after their rotation, in the order of
                   dimensions that GGUF has in the rows of attn_k.
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """h + up activation(down h + down_bias) + up_bias, for h that a half of a layer makes (Houlsby et al., 2019).

    down: float32 [size, n_embd]; up: [n_embd, size]; the biases [size] and [n_embd].
    activation: one of ACTIVATIONS.
    """

    down: NDArray[np.float32]
    down_bias: NDArray[np.float32]
    up: NDArray[np.float32]
    up_bias: NDArray[np.float32]
    activation: PlainActivation

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        return self.down, self.down_bias, self.up, self.up_bias

    @property
    def size(self) -> int:
        return len(self.down)

    def check(self, name: str) -> None:
        """Raise FormatError for shapes that do not belong together, and an activation that nobody knows."""
        if self.down.ndim != 2 or not self.down.size:
            raise FormatError(f"{name}: its matrix down has the shape {list(self.down.shape)}; expected [size, n_embd]")
        size, width = self.down.shape
        shapes = {"down_bias": (size,), "up": (width, size), "up_bias": (width,)}
        for part, shape in shapes.items():
            if (found := getattr(self, part).shape) != shape:
                raise FormatError(f"{name}: its {part} has the shape {list(found)}; expected {list(shape)}")
        if self.activation not in ACTIVATIONS:
            raise FormatError(f"{name}: its activation is {self.activation!r:.60}; expected {' or '.join(ACTIVATIONS)}")
