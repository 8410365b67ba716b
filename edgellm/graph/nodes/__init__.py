"""The words in which an architecture states its forward pass, a file for each sort of node.

What only adapters, mixtures of experts, encoders or training need is imported from its own file.
"""

from __future__ import annotations

from edgellm.graph.nodes.attention import Attention, AttentionSpec, KeysValues, attention, keys_values
from edgellm.graph.nodes.base import Graph, Node, Value
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
from edgellm.graph.nodes.embed import AddSegment, Embed, EmbedPosition, add_segment, embed, embed_position
from edgellm.graph.nodes.linear import Linear, linear
from edgellm.graph.nodes.norm import LayerNorm, RMSNorm, layer_norm, rms_norm
from edgellm.graph.nodes.rope import Rope, Rotation, rope
from edgellm.graph.nodes.rows import Maxima, ReplaceRows, SelectRows, maxima, replace_rows, select_rows
from edgellm.graph.nodes.scaled import (
    AmongZeros,
    Columns,
    Scale,
    SoftCap,
    among_zeros,
    columns,
    scale,
    soft_cap,
    split_columns,
)

__all__ = [
    "GLU",
    "Activate",
    "Activation",
    "Add",
    "AddBias",
    "AddSegment",
    "AmongZeros",
    "Attention",
    "AttentionSpec",
    "Columns",
    "Embed",
    "EmbedPosition",
    "Graph",
    "KeysValues",
    "LayerNorm",
    "Linear",
    "Maxima",
    "Node",
    "PlainActivation",
    "RMSNorm",
    "ReplaceRows",
    "Rope",
    "Rotation",
    "Scale",
    "SelectRows",
    "SoftCap",
    "Value",
    "activate",
    "add",
    "add_bias",
    "add_segment",
    "among_zeros",
    "attention",
    "columns",
    "embed",
    "embed_position",
    "glu",
    "keys_values",
    "layer_norm",
    "linear",
    "maxima",
    "replace_rows",
    "rms_norm",
    "rope",
    "scale",
    "select_rows",
    "soft_cap",
    "split_columns",
]
