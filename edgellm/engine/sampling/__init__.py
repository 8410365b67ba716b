"""Choosing the next token: steps over candidates, one file for each, and a draw.

    logits ──► Candidates ──► step ──► step ──► ... ──► draw ──► id
               ids, logits

A step's file has the name that people give it (`samplers=["top_k", "temperature"]`), and a function `step` that makes
it from `SamplingParams`. A file is imported when its step is wanted.
"""

from edgellm.engine.sampling.candidates import Candidates, NoTokenError
from edgellm.engine.sampling.logprobs import TokenLogprobs
from edgellm.engine.sampling.sampler import Sampler

__all__ = ["Candidates", "NoTokenError", "Sampler", "TokenLogprobs"]
