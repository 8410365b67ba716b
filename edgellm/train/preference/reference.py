"""The reference: what the model makes of answers without the adapter, found once before training.

It never changes, so its likelihoods are kept in the run's folder, with what they are of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from edgellm.engine import Model
from edgellm.train.data import order
from edgellm.train.documents import Documents
from edgellm.train.model_learner import ModelLearner
from edgellm.train.preference.answers import Answers
from edgellm.train.preference.numbers import Floats
from edgellm.train.sealed import read_sealed, write_sealed

FILE = "reference.json"


class Reference(ModelLearner):
    """A model as it is, in the passes that a learner of it makes: so both give the same before the first step."""

    def __init__(self, model: Model, n_batch: int) -> None:
        super().__init__(model, n_batch)
        try:
            self.prepare(model._runner.graphs)
        except BaseException:
            self.close()
            raise


def reference_likelihoods(
    model: Model, answers: Sequence[Documents], n_batch: int, folder: Path | None, digest: str
) -> Floats:
    """float64 [n_answers], the log-likelihood of each of some answers.

    folder:  where they are kept, if they are kept. digest: tells the model from others.
    Raises FileProblem when they cannot be kept.
    """
    target = model._runner.target
    of = f"{digest} {target.activations} {target.kv_type} {_digest(answers)}" if folder else ""
    found = _kept(folder, of, len(answers)) if folder else None
    if found is not None:
        return found
    likelihoods = np.empty(len(answers))
    with closing(Reference(model, n_batch)) as reference:
        for group in order.packed([len(answer) for answer in answers], n_batch):
            some = Answers.gathered([answers[n] for n in group], group)
            likelihoods[group] = some.log_likelihoods(reference.negative_log_likelihoods(some))
    if folder:
        write_sealed(folder / FILE, {"of": of, "log_likelihoods": likelihoods.tolist()})
    return likelihoods


def _digest(answers: Sequence[Documents]) -> str:
    """Tells answers from others, and from the same in another order, which a split by another seed gives."""
    found = hashlib.sha256()
    for answer in answers:
        for array in (answer.lengths, answer.ids, answer.targets):
            found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def _kept(folder: Path, of: str, n_answers: int) -> Floats | None:
    """Those of a file; None when there is none, or it is of something else."""
    found = read_sealed(folder / FILE)
    if found is None or found.get("of") != of:
        return None
    likelihoods = np.array(found["log_likelihoods"], np.float64)
    return likelihoods if likelihoods.shape == (n_answers,) and np.isfinite(likelihoods).all() else None
