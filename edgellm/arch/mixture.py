"""Mixtures of experts in place of a feed-forward: their hyperparameters, their part of a forward pass, their tensors.

What all families share. A layer with a router (`ffn_gate_inp`) has experts, one without is as dense models have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgellm.arch.config import Keys, ModelConfig
from edgellm.arch.huggingface import Settings
from edgellm.arch.parts import project
from edgellm.arch.stacks import Experts
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.graph.nodes import Value, add, glu, linear
from edgellm.graph.nodes.experts import Routing, add_expert_bias, expert_linear, gate, route, sum_experts
from edgellm.graph.nodes.heads import slice_heads

MOST_EXPERTS = 4096
# What `expert_gating_func` says, as llama.cpp counts them.
SCORINGS = {1: "softmax", 2: "sigmoid", 3: "logits"}


class Mixture(NamedTuple):
    """The experts of a layer.

    n_ff:         width inside an expert. n_ff_shared: inside the one that all tokens have; 0 is none.
    routing:      how a token's experts are chosen.
    """

    n_experts: int
    n_ff: int
    n_ff_shared: int
    routing: Routing


def mixture_of(metadata: Mapping[str, Any], usual: Routing) -> Mixture:
    """The mixture that a file's metadata describe. Raises FormatError naming the key that cannot be.

    usual:  how the family chooses where the file does not say.
    """
    keys = Keys(metadata)
    n_experts = keys.count("expert_count", most=MOST_EXPERTS)
    n_used = keys.count("expert_used_count", most=MOST_EXPERTS)
    if n_used > n_experts:
        raise FormatError(f"{keys.architecture}.expert_used_count is {n_used}, and there are {n_experts} experts")
    n_ff = keys.count("expert_feed_forward_length", keys.count("feed_forward_length"))
    n_shared = keys.count("expert_shared_count", 0, least=0, most=MOST_EXPERTS)
    n_groups = keys.count("expert_group_count", 1, least=0, most=MOST_EXPERTS) or 1
    n_groups_used = keys.count("expert_group_used_count", n_groups, least=0, most=MOST_EXPERTS) or n_groups
    kind = keys.count("expert_gating_func", 0, least=0)
    if kind and kind not in SCORINGS:
        raise UnsupportedError(f"{keys.architecture}.expert_gating_func is {kind}; edgellm knows {list(SCORINGS)}")
    scoring: Any = SCORINGS.get(kind, usual.scoring)
    size = n_experts // n_groups
    n_ranked = usual.n_ranked if n_groups > 1 else 1
    if n_experts % n_groups or n_groups_used > n_groups or n_used > n_groups_used * size or n_ranked > size:
        raise FormatError(
            f"{n_used} of {n_experts} experts cannot be chosen from {n_groups_used} of {n_groups} groups "
            f"({keys.architecture}.expert_group_count, expert_group_used_count)"
        )
    return Mixture(
        n_experts,
        n_ff,
        keys.count("expert_shared_feed_forward_length", n_shared * n_ff, least=0),
        Routing(
            n_used,
            scoring,
            keys.flag("expert_weights_norm", usual.normalize),
            keys.number("expert_weights_scale", usual.scale, zero=1.0),
            n_groups,
            n_groups_used,
            n_ranked,
        ),
    )


def n_foreseeing(metadata: Mapping[str, Any]) -> int:
    """How many of a file's last layers foresee further tokens (multi-token prediction), which are not run."""
    keys = Keys(metadata)
    return keys.count("nextn_predict_layers", 0, least=0, most=keys.count("block_count") - 1)


# --- the forward pass ---------------------------------------------------------------------------------------


def mixture(w: Weights, c: ModelConfig, x: Value) -> Value:
    """What a token's experts make of it, weighted and added up, and what the shared one does, where there is one."""
    m = c.mixture
    assert m is not None
    if not m.n_ff_shared:
        return experts(w, c, x, router_logits(w, m, x), "ffn_out")
    routed = experts(w, c, x, router_logits(w, m, x), "ffn_moe_out")
    gates, ups = (project(w, x, f"ffn_{part}_shexp", m.n_ff_shared) for part in ("gate", "up"))
    h = glu(gates, ups, c.style.activation, name=w.named("ffn_shexp_act"))
    shared = project(w, h, "ffn_down_shexp", c.n_embd, "ffn_shexp")
    if w.has("ffn_gate_inp_shexp"):
        shared = gate(shared, linear(x, w.take_row("ffn_gate_inp_shexp", c.n_embd)), name=w.named("ffn_shexp_gated"))
    return add(routed, shared, name=w.named("ffn_out"))


def router_logits(w: Weights, m: Mixture, x: Value) -> Value:
    """How good the router finds each expert for a token."""
    return project(w, x, "ffn_gate_inp", m.n_experts, "ffn_moe_logits")


def experts(w: Weights, c: ModelConfig, x: Value, logits: Value, made: str) -> Value:
    """What the experts that `logits` choose make of x, weighted and added up; named `made`."""
    m = c.mixture
    assert m is not None
    bias, scales = w.bias("exp_probs_b", m.n_experts), w.scale("ffn_down_exps", m.n_experts)
    chosen, weights = route(logits, m.routing, bias, scales)
    x.graph.name(chosen, w.named("ffn_moe_topk"))
    x.graph.name(weights, w.named("ffn_moe_weights"))
    gates, ups = _gates_and_ups(w, x, chosen, m)
    h = glu(gates, ups, c.style.activation, name=w.named("ffn_moe_act"))
    down = _experts(w, h, "down", chosen, m, c.n_embd, m.n_ff)
    return sum_experts(down, weights, name=w.named(made))


def _gates_and_ups(w: Weights, x: Value, chosen: Value, m: Mixture) -> list[Value]:
    """From two stacks of matrices, or from one that has both of an expert, gates first."""
    if not w.has("ffn_gate_up_exps"):
        return [_experts(w, x, part, chosen, m, m.n_ff) for part in ("gate", "up")]
    both = _experts(w, x, "gate_up", chosen, m, 2 * m.n_ff)
    return [slice_heads(both, m.routing.n_used, start, m.n_ff) for start in (0, m.n_ff)]


def _experts(w: Weights, x: Value, part: str, chosen: Value, m: Mixture, n_out: int, n_in: int | None = None) -> Value:
    """W x for the matrices `ffn_PART_exps` of the experts chosen, plus their biases where there are some."""
    name = f"ffn_{part}_exps"
    weight, bias = w.take(name, m.n_experts, n_out, n_in or x.width), w.bias(name, m.n_experts, n_out)
    value_name = w.named(f"ffn_moe_{part}")
    if bias is None:
        return expert_linear(x, weight, chosen, name=value_name)
    return add_expert_bias(expert_linear(x, weight, chosen), bias, chosen, name=value_name)


# --- checkpoints --------------------------------------------------------------------------------------------

_MLP = "model.layers.{}.mlp."
# As most families have them: a tensor for each expert, or, as transformers 5 has them in memory, stacks of all.
EXPERTS = {
    "blk.{}.ffn_gate_exps": Experts(_MLP + "experts.{}.gate_proj", _MLP + "experts.gate_up_proj", part=0, n_parts=2),
    "blk.{}.ffn_up_exps": Experts(_MLP + "experts.{}.up_proj", _MLP + "experts.gate_up_proj", part=1, n_parts=2),
    "blk.{}.ffn_down_exps": Experts(_MLP + "experts.{}.down_proj", _MLP + "experts.down_proj"),
}
ROUTER = {"blk.{}.ffn_gate_inp": _MLP + "gate"}
SHARED_EXPERT = {
    f"blk.{{}}.ffn_{part}_shexp": f"{_MLP}shared_experts.{part}_proj" for part in ("gate", "up", "down")
}  # fmt: skip


# What config.json calls the number of all experts and of a token's: classes differ, and versions of transformers too.
_ALL = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OF_A_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")


def mixture_hyperparameters(s: Settings, n_ff: str | None = "moe_intermediate_size") -> dict[str, Any]:
    """GGUF's keys for what all families say in config.json.

    n_ff:  what an expert's width is called there; None where it is that of a feed-forward.
    """
    (all_, n_experts), (of_a_token, n_used) = (_count_of(s, names) for names in (_ALL, _OF_A_TOKEN))
    if n_used > n_experts:
        raise FormatError(f"{s.file}: {of_a_token} is {n_used}, and {all_} is {n_experts}")
    found = {"expert_count": n_experts, "expert_used_count": n_used}
    return found if n_ff is None else found | {"expert_feed_forward_length": s.count(n_ff)}


def said_experts(s: Settings) -> str:
    """What config.json says of the number of experts, for errors: "num_experts is 8"."""
    name, n_experts = _count_of(s, _ALL)
    return f"{name} is missing, so {n_experts} was taken" if name in s.assumed else f"{name} is {n_experts}"


def _count_of(s: Settings, names: tuple[str, ...]) -> tuple[str, int]:
    """The name that config.json has for a count of experts, and the count; otherwise the default of the class."""
    said = [name for name in names if name in s.values and name not in s.assumed]
    if other := next((name for name in said[1:] if s.values[name] != s.values[said[0]]), None):
        raise FormatError(
            f"{s.file}: {said[0]} is {shown(s.values[said[0]])} and {other} is {shown(s.values[other])}, which are two "
            "names of one setting; leave the wrong one out"
        )
    name = next((name for name in (*said, *names) if name in s.values), names[0])
    return name, s.count(name, most=MOST_EXPERTS)


def mixture_settings(
    c: ModelConfig, n_experts: str = "num_experts", n_ff: str | None = "moe_intermediate_size"
) -> dict[str, Any]:
    """config.json for the same."""
    m = c.mixture
    assert m is not None
    found = {n_experts: m.n_experts, "num_experts_per_tok": m.routing.n_used}
    return found if n_ff is None else found | {n_ff: m.n_ff}


def every_layer_has_experts(s: Settings) -> None:
    """UnsupportedError for layers without experts among those with them, which llama.cpp's files cannot tell either."""
    s.expect("decoder_sparse_step", 1)
    s.expect("mlp_only_layers", [])
