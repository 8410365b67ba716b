"""DRY, "don't repeat yourself" (p-e-w, 2024, github.com/oobabooga/text-generation-webui/pull/5677).

If the end of the text, its last n tokens, was there before, the token that came next then would lengthen a repetition.
From n = `dry_allowed_length` on its logit loses `dry_multiplier * dry_base ** (n - dry_allowed_length)`. A repetition
does not reach across a sequence breaker, such as a line feed.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.engine.sampling.candidates import MOST_LOST, Candidates
from edgellm.engine.sampling.step import Context, Step, Surroundings
from edgellm.kernels.sampling_records import LARGEST
from edgellm.params import SamplingParams
from edgellm.text.strings import StringFinder

LOG_MOST_LOST = math.log(MOST_LOST)
MOST_TOKENS = 1 << 31  # more than any text has


class Dry(Step):
    def __init__(self, params: SamplingParams, around: Surroundings) -> None:
        self._log_multiplier, self._log_base = math.log(params.dry_multiplier), math.log(params.dry_base)
        self._allowed, self._last_n = params.dry_allowed_length, params.dry_penalty_last_n
        self._context = around.context
        self._breaks = _Breaks(params, around) if params.dry_sequence_breakers else None
        # A longer repetition could cost no more than this one.
        worst = (math.log(LARGEST) - self._log_multiplier) / self._log_base if self._log_base else 0
        self._longest = self._allowed + math.ceil(min(max(0, worst), MOST_TOKENS))  # it may be infinite

    def apply(self, candidates: Candidates) -> None:
        ids = self._context.last(self._last_n)
        limit = min(self._longest, len(ids) - 1)
        if self._breaks is not None:
            limit = min(limit, self._breaks.n_after_the_last(self._context))
        if limit < self._allowed:
            return
        tokens, lengths = candidates.loops.repeated(ids, limit, self._allowed)
        if len(tokens):
            candidates.change(tokens, np.array([self._lost(length) for length in lengths.tolist()]))

    def _lost(self, length: float) -> float:
        """multiplier * base ** (length - allowed)"""
        return math.exp(min(self._log_multiplier + self._log_base * (length - self._allowed), LOG_MOST_LOST))


class _Breaks:
    """Where the text so far has sequence breakers, also such as reach over several tokens."""

    def __init__(self, params: SamplingParams, around: Surroundings) -> None:
        # A character for each byte, as a token may hold a part of one.
        self._finder = StringFinder([_as_characters(text.encode()) for text in params.dry_sequence_breakers])
        self._token_bytes = around.token_bytes
        self._n_after: list[int] = []  # tokens after the last breaker, for each token of the text
        self._nodes: list[int] = []

    def n_after_the_last(self, context: Context) -> int:
        n_after, nodes = self._n_after, self._nodes
        del n_after[len(context) :], nodes[len(context) :]
        for token_id in context.last()[len(nodes) :].tolist():
            node, after = nodes[-1] if nodes else 0, n_after[-1] + 1 if n_after else 1
            for character in _as_characters(self._token_bytes(token_id)):
                node = self._finder.next(node, character)
                if self._finder.found(node):
                    after = 0
            nodes.append(node)
            n_after.append(after)
        return n_after[-1] if n_after else 0


def _as_characters(data: bytes) -> str:
    return data.decode("latin-1")


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Dry(params, around)
