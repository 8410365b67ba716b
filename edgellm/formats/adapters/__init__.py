"""Adapters as files: folders of PEFT and GGUF adapters of llama.cpp, in and out."""

from __future__ import annotations

from edgellm.formats.adapters.adapter import Adapter, LowRank
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.parts import Bottleneck, LayerPrefix

__all__ = ["Adapter", "Bottleneck", "LayerPrefix", "LowRank", "Naming"]
