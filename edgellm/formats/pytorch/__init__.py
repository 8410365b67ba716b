"""PyTorch's `.bin` and `.pt` files, read without torch and without running the pickle inside."""

from __future__ import annotations

from edgellm.formats.pytorch.state_dict import read_pytorch

__all__ = ["read_pytorch"]
