"""Chats in the shapes of OpenAI's interface (/v1/chat/completions), as dicts.

asked (`asking.py`) ──► Model.chat ──► generations ──► a completion, or chunks of one (`shapes.py`)
"""

from __future__ import annotations

from edgellm.engine.openai.asking import OpenAIParams, goes_on, openai_params, prepared
from edgellm.engine.openai.shapes import ChatShape, usage_of

__all__ = ["ChatShape", "OpenAIParams", "goes_on", "openai_params", "prepared", "usage_of"]
