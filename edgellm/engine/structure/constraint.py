"""Which tokens may come next, so that an answer has the structure that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step
from edgellm.engine.structure.asked import Asked
from edgellm.engine.structure.vocabulary import guidance, vocabulary_of
from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.params import MOST_CHOICES

if TYPE_CHECKING:
    from edgellm.text import Tokenizer


class Constraint(Step):
    """A grammar that an answer follows, and how far it has got.

    is_complete:  the answer is a whole one, and nothing can come any more.
    state:        the number of its tokens that the grammar has followed.
    """

    def __init__(self, matcher: Any, n_tokens: int, name: str) -> None:
        """n_tokens: that the matcher knows, which may be one more than the model has."""
        self._matcher, self._n_tokens, self._name = matcher, n_tokens, name
        self._mask = np.zeros(-(-n_tokens // MAXIMA_GROUP), np.uint64)
        self._n_mask_bytes = -(-n_tokens // 32) * 4
        self._n_prompt = 0
        self._n_followed = 0

    @classmethod
    def of(cls, asked: Asked, tokenizer: Tokenizer, n_vocab: int) -> Constraint:
        """Compiled for a vocabulary. Raises UsageError for a structure that cannot be followed."""
        vocabulary = vocabulary_of(tokenizer, n_vocab)
        llguidance = guidance()
        limits = llguidance.LLParserLimits(verbose_errors=False, max_items_in_row=MOST_CHOICES + 1)
        matcher = llguidance.LLMatcher(vocabulary, asked.for_guidance, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise UsageError(f"{asked.name} {_explained(matcher.get_error())}", parameter=asked.name)
        return cls(matcher, vocabulary.vocab_size, asked.name)

    def copy(self) -> Constraint:
        """The same for another answer."""
        return Constraint(self._matcher.deep_copy(), self._n_tokens, self._name)

    def begin(self, tokens: Sequence[int]) -> None:
        """tokens: the whole text, of which the answer is the end."""
        self._n_prompt = len(tokens)

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in what has been chosen. tokens: the whole text."""
        new = tokens[self._n_prompt + self._n_followed :]
        if new:
            if not self._matcher.consume_tokens(list(new)):
                raise self._lost()
            self._n_followed += len(new)

    def forced(self) -> list[int]:
        """The tokens that must come next, where there is no other way to go on."""
        return [] if self.is_complete else list(self._matcher.compute_ff_tokens())

    def apply(self, candidates: Candidates) -> None:
        """Leave the tokens that may come."""
        candidates.allow(self.mask())

    def mask(self) -> np.ndarray:
        """A bit for each token that may come, as `Candidates.allow` takes them; valid until the next is asked for."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._n_mask_bytes)
        if self._matcher.is_error():
            raise self._lost()
        return self._mask

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._n_followed

    @state.setter
    def state(self, n_followed: int) -> None:
        if n_followed < self._n_followed:
            self._matcher.rollback(self._n_followed - n_followed)
            self._n_followed = n_followed

    def _lost(self) -> UsageError:
        return UsageError(
            f"{self._name} cannot be followed any further: {_explained(self._matcher.get_error())}",
            parameter=self._name,
        )


def check_grammar(asked: Asked) -> None:
    """Raises UsageError for a structure that no vocabulary could follow."""
    if problem := guidance().LLMatcher.validate_grammar(asked.for_guidance):
        raise UsageError(f"{asked.name} {_explained(problem)}", parameter=asked.name)


def _explained(problem: str) -> str:
    """What llguidance says of a grammar, as the end of a line that begins with the name of a parameter."""
    problem = problem.split("<state>")[0]
    if words := re.search(r"Unimplemented keys: \[(.*?)\]", problem):
        return f"uses {words[1]}, which is not supported in a schema; leave it out"
    if found := re.search(r"Unknown format: (.*)", problem):
        return f"uses the format {found[1].strip()!r}, which is not supported in a schema; leave it out"
    if "oneOf" in problem:
        return 'uses "oneOf" with schemas that one value may satisfy together, which is not supported; use anyOf'
    if found := re.search(r"Unsatisfiable schema: (.*)", problem):
        return f"is a schema that no text satisfies: {found[1].strip()}"
    if "NoExtension" in problem:
        return "describes no text at all: nothing can come at its beginning"
    if found := re.search(r"unknown name: \"?([^\"\n]*)", problem):
        return f"names {found[1]}, which it does not define"
    if found := re.search(r"(?s)invalid regex (?:\")?.*?error: ([^\n]*)", problem):
        return f"holds a regular expression that cannot be used: {found[1].strip()}"
    if found := re.search(r"(?s)failed to compile JSON schema: (.*?)(?=\n\s*\d+ \||$)", problem):
        what = re.sub(r"(?s)regex parse error:.*error: ", "", found[1])
        return f"is a JSON schema that cannot be used: {' '.join(what.split())[:300]}"
    return f"cannot be used: {' '.join(problem.split())[:300]}"
