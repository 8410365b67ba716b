"""The steps of one answer in their order, and the draw after them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from edgellm.engine.sampling.all_tokens import likeliest
from edgellm.engine.sampling.candidates import Candidates, Dice
from edgellm.engine.sampling.groups import IN_NUMPY, GroupLoops
from edgellm.engine.sampling.step import Context, Step, Surroundings
from edgellm.engine.sampling.temperature import is_greedy
from edgellm.params import SamplingParams

# They never leave the likeliest token out, so where it alone is taken afterwards they need not run.
KEEP_THE_LIKELIEST = ("top_n_sigma", "top_k", "top_p", "min_p")


class Sampler:
    """Applies `SamplingParams` to one text; its random numbers depend on the seed alone.

    token_bytes:  what a token stands for in a text, for steps that look at texts.
    never:        tokens that must not come at all.
    rules:        steps that come before all others, whatever their order: they say what may come at all.
    loops:        what goes through all logits of a large vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        token_bytes: Callable[[int], bytes] = lambda token_id: b"",
        never: Iterable[int] = (),
        rules: Sequence[Step] = (),
        loops: GroupLoops = IN_NUMPY,
    ) -> None:
        self.params = params
        self._dice = Dice(params.seed)
        self._loops = loops
        self._around = Surroundings(Context(), self._dice, token_bytes)
        biases = dict(params.logit_bias or {}) | dict.fromkeys(never, -math.inf)
        self._ids = np.array(sorted(biases), np.int64)
        self._lost = np.array([-biases[token_id] for token_id in sorted(biases)], np.float64)
        self._rules = list(rules)
        self._steps = _steps(params, self._around)
        self._last = self._steps[-1] if self._steps else Step()
        # Then nothing needs to be known but the largest logit.
        self._is_greedy = not (rules or biases) and len(self._steps) == 1 and is_greedy(self._steps[0])

    def choose(
        self,
        logits: np.ndarray,
        context: Sequence[int],
        maxima: np.ndarray | None = None,
        forbidden: Iterable[int] = (),
    ) -> int:
        """The next token id.

        logits:     float32 [n_vocab], which are written over in between and the same again afterwards.
        context:    the ids so far, prompt included: those of the last call and more, or the first of them.
        maxima:     the largest of every MAXIMA_GROUP logits, where they are known already; a large vocabulary is
                    looked through by them, and never sorted or copied unless a step needs it. Also
                    written over in between.
        forbidden:  tokens that must not come now.

        Rules and logit biases come first, then the steps in their order, then the draw. The runner has seen to it that
        all logits are numbers; minus infinity is the logit of a token that must not come. Raises UsageError when no
        token may come, and for what a step of one's own may not do.
        """
        if self._is_greedy and maxima is not None and not forbidden:
            found = likeliest(logits, maxima)
            if logits[found] > -math.inf:
                return found
        candidates = Candidates(logits, maxima, self._loops, is_lent=True)
        try:
            self._apply(candidates, context, forbidden)
            drawn = candidates.draw(self._dice)
            self._last.drawn(drawn)
            return drawn.token_id
        finally:
            candidates.give_back()

    def candidates(
        self,
        logits: np.ndarray,
        context: Sequence[int],
        maxima: np.ndarray | None = None,
        forbidden: Iterable[int] = (),
    ) -> Candidates:
        """What the steps leave, before the draw; see `choose`."""
        candidates = Candidates(logits, maxima, self._loops)
        self._apply(candidates, context, forbidden)
        return candidates

    def _apply(self, candidates: Candidates, context: Sequence[int], forbidden: Iterable[int]) -> None:
        self._around.context.follow(context)
        for rule in self._rules:
            rule.apply(candidates)
        if len(self._ids):
            candidates.change(self._ids, self._lost)
        if forbidden:
            candidates.forbid(np.array(sorted(forbidden), np.int64))
        for step in self._steps:
            step.apply(candidates)

    @property
    def state(self) -> list[Any]:
        """What its steps remember of earlier tokens, to be given back when the tokens after now are taken back."""
        return [step.state for step in (*self._rules, *self._steps)]

    @state.setter
    def state(self, states: list[Any]) -> None:
        for step, state in zip((*self._rules, *self._steps), states, strict=True):
            step.state = state


def _steps(params: SamplingParams, around: Surroundings) -> list[Step]:
    wanted = params.steps
    if params.temperature == 0 and "temperature" in wanted:
        # Greedy: named steps that come after have one candidate left, and some that come before cannot matter.
        place = wanted.index("temperature")
        wanted[place + 1 :] = [step for step in wanted[place + 1 :] if not isinstance(step, str)]
        while place and wanted[place - 1] in KEEP_THE_LIKELIEST:
            place -= 1
            del wanted[place]
    made = []
    for index, step in enumerate(wanted):
        if isinstance(step, str):
            module = importlib.import_module(f"edgellm.engine.sampling.{step}")
            made.append(module.step(params, around))
        else:
            from edgellm.engine.sampling.custom import Custom

            made.append(Custom(step, index, around))
    return made
