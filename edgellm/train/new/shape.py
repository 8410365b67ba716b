"""The shape of a new model: Llama's (Touvron et al., 2023), in as many layers and columns as wanted.

With experts it is Mixtral's (Jiang et al., 2024), which for GGUF is a Llama too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from edgellm.arch.config import MOST_LAYERS
from edgellm.arch.mixture import MOST_EXPERTS
from edgellm.checks import flag, positive_number, take, whole_number, wrong
from edgellm.errors import UsageError

MOST_WIDTH = 1 << 16
MOST_CONTEXT = 1 << 20
MOST_BASE = 1e12  # of rotary positions; of published models some have 1e7
LEAST_EPSILON = 1e-30  # float32 holds it
LEAST_HEAD = 32  # columns of a head, where the heads are not given
USUAL_USED = 2  # experts of a token


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
    n_experts:   experts of every layer, in place of its feed-forward; None is a feed-forward.
    n_experts_used:  experts of each token; usual are 2.
    n_expert_ff: columns inside of an expert; usual are so many that those of a token have as many together as a
                 feed-forward has.

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
    n_experts: int | None = None
    n_experts_used: int | None = None
    n_expert_ff: int | None = None

    def __post_init__(self) -> None:
        take(self, "n_layers", whole_number, 1, MOST_LAYERS)
        take(self, "n_embd", whole_number, 2, MOST_WIDTH)
        take(self, "n_heads", whole_number, 1, MOST_WIDTH // 2, optional=True)
        take(self, "n_kv_heads", whole_number, 1, MOST_WIDTH // 2, optional=True)
        take(self, "n_ff", whole_number, 1, 4 * MOST_WIDTH, optional=True)
        take(self, "n_ctx", whole_number, 2, MOST_CONTEXT)
        take(self, "rope_base", positive_number, MOST_BASE, 1.0)
        take(self, "norm_epsilon", positive_number, 1.0, LEAST_EPSILON)
        take(self, "tied_embeddings", flag)
        take(self, "n_experts", whole_number, 1, MOST_EXPERTS, optional=True)
        take(self, "n_experts_used", whole_number, 1, MOST_EXPERTS, optional=True)
        take(self, "n_expert_ff", whole_number, 1, 4 * MOST_WIDTH, optional=True)

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
        return Shape(self.n_layers, self.n_embd, n_heads, n_kv_heads, self._feed_forward(), self.n_ctx, self.rope_base,
                     self.norm_epsilon, self.tied_embeddings, *self._experts())  # fmt: skip

    def _feed_forward(self) -> int | None:
        if self.n_experts is None:
            return self.n_ff or usual_feed_forward(self.n_embd)
        if self.n_ff is not None:
            raise _not_beside("n_ff", self.n_ff, "stands beside n_experts", "n_expert_ff, the columns of an expert")
        return None

    def _experts(self) -> tuple[int, int, int] | tuple[None, None, None]:
        """How many there are, how many a token has, and their width."""
        if self.n_experts is None:
            for name in ("n_experts_used", "n_expert_ff"):
                if (value := getattr(self, name)) is not None:
                    raise _not_beside(name, value, "stands without n_experts", "how many experts there are too")
            return None, None, None
        n_used = self.n_experts_used or min(USUAL_USED, self.n_experts)
        if n_used > self.n_experts:
            raise wrong("n_experts_used", n_used, f"a number up to n_experts {self.n_experts}")
        n_ff = self.n_expert_ff or usual_feed_forward(self.n_embd, n_used)
        return self.n_experts, n_used, n_ff


@dataclass(frozen=True)
class Shape:
    """A decoder's shape without its vocabulary: `ShapeSettings` whose numbers are all there and fit together.

    n_ff is None in a model with experts, and what is said of these in one without.
    """

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ff: int | None
    n_ctx: int
    rope_base: float
    norm_epsilon: float
    tied_embeddings: bool
    n_experts: int | None = None
    n_experts_used: int | None = None
    n_expert_ff: int | None = None

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
                **self._feed_forward(),
            }
            found |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
        found["output_norm"] = (width,)
        if not self.tied_embeddings:
            found["output"] = (n_vocab, width)
        return {f"{name}.weight": shape for name, shape in found.items()}

    def _feed_forward(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer's feed-forward, or of its router and experts."""
        width = self.n_embd
        if self.n_ff is not None:
            return {"ffn_gate": (self.n_ff, width), "ffn_up": (self.n_ff, width), "ffn_down": (width, self.n_ff)}
        assert self.n_experts is not None and self.n_expert_ff is not None
        inwards = (self.n_experts, self.n_expert_ff, width)
        return {
            "ffn_gate_inp": (self.n_experts, width),
            "ffn_gate_exps": inwards,
            "ffn_up_exps": inwards,
            "ffn_down_exps": (self.n_experts, width, self.n_expert_ff),
        }

    @property
    def inner_width(self) -> tuple[str, int]:
        """The setting that says how wide a feed-forward or an expert is inside, and what it says."""
        name = "n_ff" if self.n_experts is None else "n_expert_ff"
        return name, getattr(self, name)

    def n_parameters(self, n_vocab: int) -> int:
        """Weights in all; a tied embedding counts once."""
        one_layer = replace(self, n_layers=1).tensors(n_vocab)
        sizes = {name: prod(shape) for name, shape in one_layer.items()}
        in_layer = sum(size for name, size in sizes.items() if name.startswith("blk."))
        return sum(sizes.values()) + (self.n_layers - 1) * in_layer

    def n_active_parameters(self, n_vocab: int) -> int:
        """Weights that one token meets: all, without the experts that it has not. An embedding matrix counts whole."""
        if self.n_experts is None or self.n_experts_used is None or self.n_expert_ff is None:
            return self.n_parameters(n_vocab)
        of_expert = 3 * self.n_embd * self.n_expert_ff
        return self.n_parameters(n_vocab) - self.n_layers * (self.n_experts - self.n_experts_used) * of_expert

    def hyperparameters(self, n_vocab: int) -> dict[str, Any]:
        """The keys `llama.*` of a GGUF file, without their prefix."""
        experts = {"expert_count": self.n_experts, "expert_used_count": self.n_experts_used} if self.n_experts else {}
        return {
            "block_count": self.n_layers,
            "context_length": self.n_ctx,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.inner_width[1],
            **experts,
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


def usual_feed_forward(n_embd: int, n_parts: int = 1) -> int:
    """8/3 of the hidden states' columns, or an equal part of that, rounded up to 32."""
    return -(-8 * n_embd // (3 * n_parts) // 32) * 32


def _not_beside(name: str, value: int, where: str, expected: str) -> UsageError:
    return UsageError(f"{name} is {value} and {where}; expected {expected}", parameter=name)
