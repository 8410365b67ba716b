"""Rules of layers that keep a state of a text from one token to the next."""

from __future__ import annotations

import math

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.base import STATE_TASKS, STATE_TEXTS, Lowering, rule
from edgellm.graph.nodes.recurrent import CausalConv, DeltaRule
from edgellm.graph.ops import Chunks
from edgellm.kernels import recurrent_records
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.recurrent_records import CONV_COLS


@rule(CausalConv)
def lower_causal_conv(low: Lowering, node: CausalConv) -> None:
    x, out = low.read(node.x), low.make(node)
    states, state_bytes = low.states_of(node)
    # By taps, where the file has them by columns: what reads the array sees [n_cols, n_taps] all the same.
    weight = low.constants.setdefault(node.weight, np.ascontiguousarray(node.weight.dequantize().T).T)
    n_parts = -(-x.width // CONV_COLS)
    low.add(
        "causal_conv",
        recurrent_records.CAUSAL_CONV,
        Chunks(STATE_TEXTS.name, 1, n_parts),
        [x, states],
        [out, states],
        texts=STATE_TEXTS,
        tasks=STATE_TASKS,
        states=states,
        state_bytes=state_bytes,
        x=x,
        stride=x.stride,
        weight=weight,
        n_taps=node.n_taps,
        n_cols=x.width,
        out=out,
        n_parts=n_parts,
    )


@rule(DeltaRule)
def lower_delta_rule(low: Lowering, node: DeltaRule) -> None:
    if node.value_dim % ROW_ALIGN:
        raise UnsupportedError(
            f"a gated delta rule with heads of {node.value_dim} dimensions; edgellm runs multiples of {ROW_ALIGN}"
        )
    x, decay, beta, out = low.read(node.x), low.read(node.decay), low.read(node.beta), low.make(node)
    states, state_bytes = low.states_of(node)
    low.add(
        "delta_rule",
        recurrent_records.DELTA_RULE,
        Chunks(STATE_TEXTS.name, 1, node.n_heads),
        [x, decay, beta, states],
        [out, states],
        scratch=2 * 4 * node.key_dim,
        texts=STATE_TEXTS,
        tasks=STATE_TASKS,
        states=states,
        state_bytes=state_bytes,
        x=x,
        stride=x.stride,
        decay=decay,
        decay_stride=decay.stride,
        beta=beta,
        beta_stride=beta.stride,
        rate=low.floats(node.rate),
        bias=low.floats(node.bias),
        n_key_heads=node.n_key_heads,
        n_neighbours=node.n_heads // node.n_key_heads if node.is_grouped else 1,
        n_heads=node.n_heads,
        key_dim=node.key_dim,
        value_dim=node.value_dim,
        epsilon=node.epsilon,
        scale=1 / math.sqrt(node.key_dim),
        out=out,
        out_stride=out.stride,
    )
