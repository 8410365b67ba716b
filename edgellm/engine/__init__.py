"""Load a model and generate: ids in, ids and text out."""

from __future__ import annotations

from edgellm.engine.generation import Generation
from edgellm.engine.model import Model, load
from edgellm.engine.opening import read_tokenizer as load_tokenizer
from edgellm.engine.sampling import TokenLogprobs
from edgellm.engine.stats import GenerationStats

__all__ = ["Generation", "GenerationStats", "Model", "TokenLogprobs", "load", "load_tokenizer"]
