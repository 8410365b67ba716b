"""Model families, a file each: what a family's metadata means, which weights it has, and its forward pass."""

from __future__ import annotations

from edgellm.arch.config import ModelConfig
from edgellm.arch.registry import ARCHITECTURES, Architecture, ModelGraphs, architecture_of

__all__ = ["ARCHITECTURES", "Architecture", "ModelConfig", "ModelGraphs", "architecture_of"]
