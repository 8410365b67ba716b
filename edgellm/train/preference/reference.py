"""The reference: what the model makes of answers without the adapter, found once before training.

It never changes, so its likelihoods are kept in the run's folder, with what they are of.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edgellm.engine import Model
from edgellm.errors import FileProblem
from edgellm.files import atomic_write
from edgellm.train.model_learner import ModelLearner
from edgellm.train.preference.answers import Answers
from edgellm.train.preference.numbers import Floats

FILE = "reference.npz"


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
    model: Model, passes: Sequence[Answers], n_batch: int, folder: Path | None, of: str
) -> Floats:
    """float64 [n_answers], the log-likelihoods of all answers of some passes, in their order.

    folder:  where they are kept, if they are kept. of: what tells these answers and this model from others.
    Raises FileProblem when they cannot be kept.
    """
    n_answers = sum(int(answers.owners[-1]) + 1 for answers in passes)
    found = _kept(folder, of, n_answers) if folder else None
    if found is not None:
        return found
    with closing(Reference(model, n_batch)) as reference:
        parts = [answers.log_likelihoods(reference.negative_log_likelihoods(answers)) for answers in passes]
    likelihoods = np.concatenate(parts)
    if folder:
        _keep(folder, of, likelihoods)
    return likelihoods


def _kept(folder: Path, of: str, n_answers: int) -> Floats | None:
    """Those of a file; None when there is none, or it is of something else."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            likelihoods = np.asarray(file["likelihoods"])
            is_theirs = str(file["of"]) == of and likelihoods.shape == (n_answers,)
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    if not is_theirs or likelihoods.dtype != np.float64 or not np.isfinite(likelihoods).all():
        return None
    return likelihoods


def _keep(folder: Path, of: str, likelihoods: Floats) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, of=np.array(of), likelihoods=likelihoods)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / FILE) as file:
            file.write(buffer.getvalue())
    except OSError as problem:
        raise FileProblem(f"{folder / FILE} cannot be written: {problem.strerror}") from None
