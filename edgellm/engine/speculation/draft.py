"""Guesses of a quicker model: another one of the same vocabulary, or the first layers of the model itself.

The quicker model writes on, greedily, one token after the other, for all texts together. It stops where it is no longer
sure enough for another token to be worth its time. What its guessing has brought is compared with what it has taken;
where it does not pay, it rests, each time for longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgellm.engine.kv_cache import Sequence as CachedTokens
from edgellm.engine.request import Request
from edgellm.engine.runner import Runner, Span, Variant
from edgellm.engine.sampling.all_tokens import likeliest
from edgellm.engine.speculation.drafter import Guess, n_right
from edgellm.engine.speculation.pace import Pace
from edgellm.errors import CacheFullError
from edgellm.text.common import n_common

WEIGHT = 0.1  # of the last guess, in what is known of a text
ROUNDS_TO_JUDGE = 6
FIRST_REST = 32  # tokens; each rest is twice as long as the one before
LAST_REST = 128  # who would rest for longer does not come back
SURE = 0.05  # how much more than its own confidence a guess can count, at most: what is not yet known


class Source(Protocol):
    """Where a drafter's tokens are in a cache.

    runner, variant:  what computes them.
    """

    runner: Runner
    variant: Variant

    def begin(self, request: Request, n_tokens: int) -> CachedTokens | None:
        """The tokens of a text that are in the cache, with room for the rest and n_tokens; None where there is none."""

    def end(self, request: Request, n_before: int) -> None:
        """Guesses are over; n_before tokens of them were in the cache before they began."""

    def forget(self, request: Request) -> None: ...

    def close(self) -> None: ...


class OwnLayers:
    """The first layers of the model: what the cache holds of them is the model's own.

    They write keys and values behind a text's last token, where the model's next pass writes the same ones again.
    """

    def __init__(self, runner: Runner, variant: Variant) -> None:
        self.runner, self.variant = runner, variant

    def begin(self, request: Request, n_tokens: int) -> CachedTokens | None:
        sequence = request.sequence
        return sequence if sequence is not None and sequence.grow(n_tokens + 1) else None

    def end(self, request: Request, n_before: int) -> None:
        assert request.sequence is not None
        request.sequence.trim(n_before)

    def forget(self, request: Request) -> None:
        pass

    def close(self) -> None:
        pass


class OtherModel:
    """A smaller model, with a cache of its own. Texts that have ended give their room to others.

    n_ctx:    tokens of a text that it can hold.
    """

    def __init__(self, runner: Runner, n_ctx: int) -> None:
        self.runner, self.variant, self._n_ctx = runner, runner.base, n_ctx
        self._sequences: dict[Request, CachedTokens] = {}

    def begin(self, request: Request, n_tokens: int) -> CachedTokens | None:
        if request.adapters.n_virtual or len(request.tokens) + n_tokens > self._n_ctx:
            return None
        sequence = self._sequences.get(request)
        if sequence is None:
            sequence = self._sequences[request] = self.runner.cache.sequence()
        sequence.trim(n_common(sequence.tokens, request.tokens[:-1]))
        try:
            sequence.reserve(len(request.tokens) - len(sequence) + n_tokens)
        except CacheFullError:
            return None
        return sequence

    def end(self, request: Request, n_before: int) -> None:
        """What was guessed right need not be computed again."""

    def forget(self, request: Request) -> None:
        if (sequence := self._sequences.pop(request, None)) is not None:
            sequence.release()

    def close(self) -> None:
        self._sequences.clear()
        self.runner.close()


@dataclass
class _Experience:
    """What guessing has brought for one text.

    tokens, seconds:  of a round, on average. Without guessing, seconds would have brought `plain` tokens.
    trust:            how much likelier guesses are right than the drafter is sure of them.
    """

    tokens: float = 1.0
    seconds: float = 0.0
    trust: float = 1.0
    n_rounds: int = 0
    rest_until: int = 0  # tokens of the text
    n_rest: int = FIRST_REST
    last: tuple[int, Guess, float] | None = None  # where, what, and what it took


class Draft:
    """A drafter that lets a source write on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._experiences: dict[Request, _Experience] = {}
        self._pass_seconds = 0.0

    def guess(self, requests: Sequence[Request], most: int, pace: Pace) -> dict[Request, Guess]:
        ready: dict[Request, tuple[CachedTokens, int]] = {}
        most = max(1, most // max(1, len(requests)))
        for request in requests:
            experience = self._experiences.setdefault(request, _Experience())
            self._learn(request, experience, pace)
            if pace.is_measured and len(request.tokens) < experience.rest_until:
                continue
            sequence = self._source.begin(request, min(most, request.most_guesses) - 1)
            if sequence is not None:
                ready[request] = sequence, len(sequence)
        if not ready:
            return {}
        started = time.perf_counter()
        guesses: dict[Request, Guess] = {}
        try:
            guesses = self._write(ready, most, pace)
        finally:
            for request, (_, n_before) in ready.items():
                self._source.end(request, n_before)
        seconds = (time.perf_counter() - started) / len(ready)
        for request, guess in guesses.items():
            self._experiences[request].last = (len(request.tokens), guess, seconds)
        return guesses

    def _write(self, ready: dict[Request, tuple[CachedTokens, int]], most: int, pace: Pace) -> dict[Request, Guess]:
        """Write on for all texts at once."""
        runner, room = self._source.runner, self._source.runner.n_batch
        spans: list[tuple[Request, Span]] = []
        for request, (sequence, _) in ready.items():
            missing = request.tokens[len(sequence) : len(sequence) + room]
            if missing:
                spans.append((request, Span(sequence, missing)))
                room -= len(missing)
        guesses: dict[Request, Guess] = {}
        likely = dict.fromkeys(ready, 1.0)
        while spans:
            started = time.perf_counter()
            runner.run_body([span for _, span in spans], variant=self._source.variant)
            last_rows = list(np.cumsum([len(span.token_ids) for _, span in spans]) - 1)
            results = [_likeliest(*found) for found in runner.logits_of(last_rows)]
            if last_rows[-1] + 1 == len(spans):  # no prompt was read
                self._note(time.perf_counter() - started)
            least = pace.least_chance(self._pass_seconds / len(spans))
            following: list[tuple[Request, Span]] = []
            for (request, span), (token_id, chance) in zip(spans, results, strict=True):
                span.sequence.append(span.token_ids)
                if len(span.sequence) < len(request.tokens):
                    continue  # there was too much to catch up with; the rest comes the next time
                guess = guesses.setdefault(request, Guess())
                chance *= self._experiences[request].trust
                likely[request] *= chance
                if likely[request] < least:
                    continue
                guess.tokens.append(token_id)
                guess.chances.append(min(1.0, chance))
                if len(guess.tokens) < min(most, request.most_guesses):
                    following.append((request, Span(span.sequence, [token_id])))
            spans = following
        return guesses

    def _note(self, seconds: float) -> None:
        self._pass_seconds += (seconds - self._pass_seconds) * (WEIGHT if self._pass_seconds else 1)

    def _learn(self, request: Request, experience: _Experience, pace: Pace) -> None:
        """What the last guess has brought, and whether it is time for a rest."""
        if experience.last is None:
            return
        start, guess, seconds = experience.last
        experience.last = None
        n = n_right(guess.tokens, request.tokens, start)
        seconds += pace.seconds(1 + len(guess.tokens))
        weight = max(WEIGHT, 1 / (experience.n_rounds + 1))
        experience.n_rounds += 1
        experience.tokens += (n + 1 - experience.tokens) * weight
        experience.seconds += (seconds - experience.seconds) * weight
        for i, chance in enumerate(guess.chances[: n + 1]):
            experience.trust += ((1.0 if i < n else 0.0) - chance) * WEIGHT / 4
        experience.trust = min(1 + SURE, max(0.1, experience.trust))
        if experience.n_rounds >= ROUNDS_TO_JUDGE and experience.seconds > experience.tokens * pace.seconds(1):
            experience.n_rounds = 0
            last = experience.n_rest > LAST_REST
            experience.rest_until = 1 << 60 if last else len(request.tokens) + experience.n_rest
            experience.n_rest *= 2

    def forget(self, request: Request) -> None:
        self._experiences.pop(request, None)
        self._source.forget(request)

    def close(self) -> None:
        self._experiences.clear()
        self._source.close()


def _likeliest(logits: np.ndarray, maxima: np.ndarray) -> tuple[int, float]:
    """The token with the largest logit, and its probability; 0 where logits are no numbers."""
    token_id = likeliest(logits, maxima)
    total = float(np.exp(logits - logits[token_id]).sum())
    return token_id, 1 / total if total >= 1 else 0.0
