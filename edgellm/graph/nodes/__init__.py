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
from edgellm.graph.nodes.embed import AddEmbedding, Embed, add_embedding, embed
from edgellm.graph.nodes.linear import Linear, linear
from edgellm.graph.nodes.low_rank import Choose, MultiplyColumns, Narrow, Widen, choose, multiply_columns, narrow, widen
from edgellm.graph.nodes.norm import LayerNorm, RMSNorm, layer_norm, rms_norm
from edgellm.graph.nodes.rope import Rope, Rotation, rope
from edgellm.graph.nodes.rows import Maxima, ReplaceRows, SelectRows, maxima, replace_rows, select_rows

__all__ = [
    "GLU",
    "Activate",
    "Activation",
    "Add",
    "AddBias",
    "AddEmbedding",
    "Attention",
    "AttentionSpec",
    "Chance",
    "Choose",
    "Dropout",
    "Embed",
    "Graph",
    "KeysValues",
    "LayerNorm",
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
    "SelectRows",
    "Value",
    "Widen",
    "activate",
    "add",
    "add_bias",
    "add_embedding",
    "attention",
    "choose",
    "dropout",
    "embed",
    "glu",
    "keys_values",
    "layer_norm",
    "linear",
    "maxima",
    "multiply_columns",
    "narrow",
    "replace_rows",
    "rms_norm",
    "rope",
    "select_rows",
    "widen",
]
