"""A step of one's own: any function of (ids, logits, context).

    def no_long_words(ids, logits, context):
        logits[lengths[ids] > 8] = -np.inf

ids:      int64 [n], the candidates, to be read only.
logits:   float32 or float64 [n], which it may change in place.
context:  int64, the ids of the text so far, prompt included, to be read only.

It gives None, or logits [n] to have in their place, or a pair of some of the ids and as many logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.errors import UsageError, shown
from edgellm.kernels.sampling_records import LARGEST


class Custom(Step):
    def __init__(self, function: Callable[..., Any], index: int, around: Surroundings) -> None:
        self._function, self._context = function, around.context
        self._name = f"samplers has a step, {getattr(function, '__name__', None) or shown(function)}, that"

    def apply(self, candidates: Candidates) -> None:
        candidates.cool()
        ids = np.arange(len(candidates)) if candidates.ids is None else candidates.ids
        ids.flags.writeable = False
        logits = candidates.logits.copy()
        context = self._context.last()
        context.flags.writeable = False
        given = self._function(ids, logits, context)
        if given is not None:
            ids, logits = self._checked(given, ids)
        if np.isnan(logits).any() or (logits == np.inf).any():
            raise self._wrong("gave a logit that is NaN or infinity", "numbers, or minus infinity to forbid a token")
        if not (logits > -np.inf).any():
            raise self._wrong("left no token", "at least one with a logit above minus infinity")
        is_all = candidates.ids is None and len(ids) == len(candidates)
        candidates.replace(None if is_all else ids, np.maximum(logits, -LARGEST, where=logits > -np.inf, out=logits))

    def _checked(self, given: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """New ids and logits, in the order of the old ones."""
        kept, logits = given if isinstance(given, tuple) and len(given) == 2 else (ids, given)
        try:
            kept, logits = np.asarray(kept), np.array(logits)
        except (ValueError, TypeError):
            raise self._wrong(f"gave {shown(given)}", "None, logits, or ids and logits") from None
        if logits.shape != kept.shape or kept.ndim != 1 or not np.issubdtype(logits.dtype, np.number):
            raise self._wrong(
                f"gave logits of shape {logits.shape}, {logits.dtype}", f"a number for each of the {len(kept)} tokens"
            )
        if np.iscomplexobj(logits):
            raise self._wrong("gave complex numbers", "real ones")
        if kept is ids:
            return ids, logits.astype(np.float64)
        if not len(kept):
            raise self._wrong("left no token", "at least one")
        if not np.issubdtype(kept.dtype, np.integer) or not np.isin(kept, ids).all():
            raise self._wrong("gave ids that were no candidates", "some of the ids that it is called with")
        order = np.argsort(kept, kind="stable")
        kept, logits = kept[order].astype(np.int64), logits[order].astype(np.float64)
        if (kept[1:] == kept[:-1]).any():
            raise self._wrong("gave an id twice", "each id once")
        return kept, logits

    def _wrong(self, found: str, expected: str) -> UsageError:
        return UsageError(f"{self._name} {found}; expected {expected}", parameter="samplers")
