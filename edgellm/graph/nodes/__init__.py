"""The words in which an architecture states its forward pass, a file for each kind of node."""

from __future__ import annotations

from edgellm.graph.nodes.attention import Attention, AttentionSpec, KeysValues, attention, keys_values
from edgellm.graph.nodes.base import Graph, Node, Value
from edgellm.graph.nodes.dropout import Chance, Dropout, dropout
from edgellm.graph.nodes.elementwise import (
    GLU,
    Activate,
    Activation,
    Add,
    AddBias,
    PlainActivation,
    activate,
    add,
    add_bias,
    glu,
)
from edgellm.graph.nodes.embed import Embed, embed
from edgellm.graph.nodes.experts import (
    AddExpertBias,
    ExpertLinear,
    Gate,
    Route,
    Routing,
    SumExperts,
    add_expert_bias,
    expert_linear,
    gate,
    route,
    sum_experts,
)
from edgellm.graph.nodes.heads import JoinHeads, SliceHeads, join_heads, slice_heads
from edgellm.graph.nodes.linear import Linear, linear
from edgellm.graph.nodes.low_rank import Choose, MultiplyColumns, Narrow, Widen, choose, multiply_columns, narrow, widen
from edgellm.graph.nodes.norm import RMSNorm, rms_norm
from edgellm.graph.nodes.rope import Rope, Rotation, rope
from edgellm.graph.nodes.rows import Maxima, ReplaceRows, SelectRows, maxima, replace_rows, select_rows

__all__ = [
    "GLU",
    "Activate",
    "Activation",
    "Add",
    "AddBias",
    "AddExpertBias",
    "Attention",
    "AttentionSpec",
    "Chance",
    "Choose",
    "Dropout",
    "Embed",
    "ExpertLinear",
    "Gate",
    "Graph",
    "JoinHeads",
    "KeysValues",
    "Linear",
    "Maxima",
    "MultiplyColumns",
    "Narrow",
    "Node",
    "PlainActivation",
    "RMSNorm",
    "ReplaceRows",
    "Rope",
    "Rotation",
    "Route",
    "Routing",
    "SelectRows",
    "SliceHeads",
    "SumExperts",
    "Value",
    "Widen",
    "activate",
    "add",
    "add_bias",
    "add_expert_bias",
    "attention",
    "choose",
    "dropout",
    "embed",
    "expert_linear",
    "gate",
    "glu",
    "join_heads",
    "keys_values",
    "linear",
    "maxima",
    "multiply_columns",
    "narrow",
    "replace_rows",
    "rms_norm",
    "rope",
    "route",
    "select_rows",
    "slice_heads",
    "sum_experts",
    "widen",
]
