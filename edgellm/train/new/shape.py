"""The shape of a new model: Llama's (Touvron et al., 2023), in as many layers and columns as wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from edgellm.arch.config import MOST_LAYERS
from edgellm.checks import flag, positive_number, take, whole_number, wrong

MOST_WIDTH = 1 << 16
MOST_CONTEXT = 1 << 20
LEAST_HEAD = 32  # columns of a head, where the heads are not given


@dataclass(frozen=True)
class ShapeSettings:
    """What a person says of a new model's shape; None takes what is usual beside the rest.

    n_layers:    layers.
    n_embd:      columns of the hidden states.
    n_heads:     attention heads; usual are as many as have 32 columns or a few more.
    n_kv_heads:  heads of keys and values, which the others share in groups (Ainslie et al., 2023); usual are all.
    n_ff:        columns inside of the feed-forward; usual is 8/3 of n_embd, as Llama has it.
    n_ctx:       tokens that it reads at once, in training too.
    rope_base:   the wavelength base of rotary positions.
    norm_epsilon: what keeps norms from dividing by zero.
    tied_embeddings:  the head uses the embedding matrix, which saves much of a small model.

    Raises UsageError for a value that cannot be; `shape` does for values that do not fit together.
    """

    n_layers: int = 6
    n_embd: int = 192
    n_heads: int | None = None
    n_kv_heads: int | None = None
    n_ff: int | None = None
    n_ctx: int = 256
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        take(self, "n_layers", whole_number, 1, MOST_LAYERS)
        take(self, "n_embd", whole_number, 2, MOST_WIDTH)
        take(self, "n_heads", whole_number, 1, MOST_WIDTH // 2, optional=True)
        take(self, "n_kv_heads", whole_number, 1, MOST_WIDTH // 2, optional=True)
        take(self, "n_ff", whole_number, 1, 4 * MOST_WIDTH, optional=True)
        take(self, "n_ctx", whole_number, 2, MOST_CONTEXT)
        take(self, "rope_base", positive_number)
        take(self, "norm_epsilon", positive_number)
        take(self, "tied_embeddings", flag)

    def shape(self) -> Shape:
        """With the usual numbers in place of None. Raises UsageError for numbers that do not fit together."""
        if self.n_embd % 2:
            raise wrong("n_embd", self.n_embd, "an even number")
        n_heads = self.n_heads or usual_heads(self.n_embd)
        n_kv_heads = self.n_kv_heads or n_heads
        if self.n_embd % (2 * n_heads):
            expected = f"a number that cuts n_embd {self.n_embd} into heads of an even width, such as "
            raise wrong("n_heads", n_heads, f"{expected}{usual_heads(self.n_embd)}")
        if n_heads % n_kv_heads:
            raise wrong("n_kv_heads", n_kv_heads, f"a number that divides n_heads {n_heads}")
        n_ff = self.n_ff or usual_feed_forward(self.n_embd)
        return Shape(self.n_layers, self.n_embd, n_heads, n_kv_heads, n_ff, self.n_ctx, self.rope_base,
                     self.norm_epsilon, self.tied_embeddings)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A decoder's shape without its vocabulary: `ShapeSettings` whose numbers are all there and fit together."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_ctx: int
    rope_base: float
    norm_epsilon: float
    tied_embeddings: bool

    def tensors(self, n_vocab: int) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, in NumPy order, by its name in a GGUF file."""
        width, kv_width = self.n_embd, self.n_embd // self.n_heads * self.n_kv_heads
        found: dict[str, tuple[int, ...]] = {"token_embd": (n_vocab, width)}
        for layer in range(self.n_layers):
            of_layer: dict[str, tuple[int, ...]] = {
                "attn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (kv_width, width),
                "attn_v": (kv_width, width),
                "attn_output": (width, width),
                "ffn_norm": (width,),
                "ffn_gate": (self.n_ff, width),
                "ffn_up": (self.n_ff, width),
                "ffn_down": (width, self.n_ff),
            }
            found |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
        found["output_norm"] = (width,)
        if not self.tied_embeddings:
            found["output"] = (n_vocab, width)
        return {f"{name}.weight": shape for name, shape in found.items()}

    def n_parameters(self, n_vocab: int) -> int:
        """Weights in all; a tied embedding counts once."""
        one_layer = replace(self, n_layers=1).tensors(n_vocab)
        sizes = {name: prod(shape) for name, shape in one_layer.items()}
        in_layer = sum(size for name, size in sizes.items() if name.startswith("blk."))
        return sum(sizes.values()) + (self.n_layers - 1) * in_layer

    def hyperparameters(self, n_vocab: int) -> dict[str, Any]:
        """The keys `llama.*` of a GGUF file, without their prefix."""
        return {
            "block_count": self.n_layers,
            "context_length": self.n_ctx,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.layer_norm_rms_epsilon": self.norm_epsilon,
            "rope.dimension_count": self.n_embd // self.n_heads,
            "rope.freq_base": self.rope_base,
            "vocab_size": n_vocab,
        }


def usual_heads(n_embd: int) -> int:
    """As many heads as can be of 32 columns or a few more, each of an even width; 1 where none divides."""
    most = max(1, n_embd // LEAST_HEAD)
    return next(n for n in range(most, 0, -1) if n == 1 or n_embd % (2 * n) == 0)


def usual_feed_forward(n_embd: int) -> int:
    """8/3 of the hidden states' columns, rounded up to 32."""
    return -(-8 * n_embd // 3 // 32) * 32
