"""The loop: batches into gradients, gradients into weights, and when to look, to save and to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, TypeAlias

from edgellm.errors import EdgellmError, RewardError, TrainingError
from edgellm.train.checkpoint import Checkpoints, State
from edgellm.train.config import TrainConfig
from edgellm.train.documents import Documents
from edgellm.train.interruption import Asked, asked_to_stop
from edgellm.train.learner import Learner
from edgellm.train.optimizer import AdamW, all_finite, clip_norm
from edgellm.train.schedule import learning_rate

Batch: TypeAlias = Sequence[Documents]  # a logical batch, as the passes that it goes through the model in


class Batches(Protocol):
    """The examples of a run.

    n_batches:   logical batches of an epoch, at least 1.
    validation:  what is never learnt from, in passes; empty for none.
    """

    @property
    def n_batches(self) -> int: ...

    @property
    def validation(self) -> Sequence[Documents]: ...

    def epoch(self, number: int) -> Iterable[Batch]:
        """The batches of an epoch, counted from 0: the same ones in the same order whenever it is asked."""


@dataclass(frozen=True)
class Step:
    """What a step was like. Step 0 is what was there before the first: a validation, where there is one.

    step, n_steps:      updates so far, and of the whole run.
    epoch:              how often all examples were seen so far, parts too.
    loss:               mean nll of the targets of its batch, before the update; None for step 0.
    gradient_norm:      of all gradients together, before clipping.
    learning_rate:      of its update.
    n_tokens:           of its batch. tokens_per_second are those of this step.
    validation_loss:    after its update, where the run was validated then.
    seconds, seconds_left: since the run began, with the time before it was resumed; None while nobody knows.
    figures:             what else the learner tells of it, by name; of a validation with "validation_" in front.
    """

    step: int
    n_steps: int
    epoch: float
    loss: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    n_tokens: int = 0
    tokens_per_second: float | None = None
    validation_loss: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a run ended. stopped: "end", "early" (it did not get better), "asked" (by `watch`) or "interrupted".

    The weights are those of `weights_of`: the last step, or the best one after an early stop.
    train_seconds: what the steps of this process took, without validations and checkpoints.
    """

    stopped: str
    state: State
    weights_of: int
    train_seconds: float


class Run:
    """A run from its beginning, or from a checkpoint on, to its end.

    watch:  called with each Step; True ends the run after it.

    Raises TrainingError when the loss or a weight is no finite number any more, FileProblem when a checkpoint cannot
    be written; the checkpoints that are there stay as they are.
    """

    def __init__(
        self,
        learner: Learner,
        data: Batches,
        config: TrainConfig,
        checkpoints: Checkpoints | None = None,
        watch: Callable[[Step], object] = lambda step: None,
    ) -> None:
        self.learner = learner
        self.data = data
        self.config = config
        self.n_steps = config.n_steps(data.n_batches)
        self.state = State()
        self._checkpoints = checkpoints
        self._watch = watch
        self._optimizer = AdamW(learner.parameters, config.betas, config.epsilon, config.weight_decay)
        self._saved: int | None = None  # the step of the last checkpoint
        self._begun = 0.0
        self._n_timed, self._timed = 0, 0.0  # steps of this process, and the seconds that they took

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises as `Checkpoints.restore` does."""
        assert self._checkpoints is not None
        self.state = self._checkpoints.restore(self._optimizer)
        self._saved = self.state.step

    def check_room(self) -> None:
        """Raise FileProblem where the disk has no room for the checkpoints of the steps that are left."""
        left = self.n_steps - self.state.step
        if self._checkpoints is not None and left > 0:
            self._checkpoints.check_room(self._optimizer, -(-left // self.config.checkpoint_every))

    def go(self) -> Result:
        """Train until the end, or until something ends it.

        When a signal does, a checkpoint is written before it acts: Ctrl-C raises KeyboardInterrupt then.
        """
        self._begun = time.monotonic() - self.state.seconds
        with asked_to_stop() as asked:
            try:
                stopped = self._train(asked)
            except RewardError as error:  # between two updates
                with suppress(EdgellmError):  # the first error is what is told
                    self._save()
                if self._saved is None:
                    raise
                kept = f"the checkpoint of step {self._saved} is kept, and resume goes on from there"
                raise RewardError(f"{error}; {kept}", parameter="resume") from error
            self._save()
        return self._result(stopped)

    def _train(self, asked: Asked) -> str:
        if ended := self._look(self._event(), asked):
            return ended
        for batch in self._remaining():
            event = self._learn(batch, asked)
            if event is None:
                return "interrupted"
            if ended := self._look(event, asked):
                return ended
        return "end"

    def _remaining(self) -> Iterator[Batch]:
        """The batches from the present step on to the end of the run."""
        n_batches = self.data.n_batches
        while self.state.step < self.n_steps:
            before = self.state.step
            epoch, done = divmod(before, n_batches)
            yield from islice(self.data.epoch(epoch), done, min(n_batches, done + self.n_steps - before))
            if self.state.step == before:
                raise ValueError(f"epoch {epoch} has fewer batches than the {n_batches} that were promised")

    def _learn(self, batch: Batch, asked: Asked) -> Step | None:
        """One update of the weights; None when somebody asked to stop, and nothing has changed."""
        begun = time.monotonic()
        step = self.state.step
        weight = math.fsum(documents.total_weight for documents in batch)
        if asked:  # while the batch was made
            return None
        if not weight:
            raise TrainingError(f"the batch of step {step + 1} has no token to learn")
        for gradient in self.learner.gradients.values():
            gradient.fill(0)
        losses = []
        for index, documents in enumerate(batch):
            if asked:
                return None
            self.learner.begin_pass(step, index)
            losses.append(self.learner.loss_and_gradients(documents, 1 / weight))
        if asked:
            return None
        loss = sum(losses) / weight
        self._refuse("the loss", loss)
        norm = clip_norm(self.learner.gradients, self.config.clip)
        self._refuse("the norm of the gradients", norm)
        rate = learning_rate(self.config, step, self.n_steps)
        self._optimizer.update(self.learner.gradients, rate)
        seconds = time.monotonic() - begun
        n_tokens = sum(map(len, batch))
        self.state.step += 1
        self.state.n_tokens += n_tokens
        self._n_timed += 1
        self._timed += seconds
        return replace(self._event(), loss=loss, gradient_norm=norm, learning_rate=rate, n_tokens=n_tokens,
                       tokens_per_second=n_tokens / max(seconds, 1e-9), figures=self.learner.figures())  # fmt: skip

    def _look(self, event: Step, asked: Asked) -> str | None:
        """After a step: validate, tell and save where that is due. Gives why the run ends, or None."""
        is_best = False
        if self._is_to_be_validated():
            loss = self._validate(asked)
            if loss is not None:
                is_best = self._note_validation(loss)
                found = {f"validation_{name}": value for name, value in self.learner.figures().items()}
                event = replace(event, validation_loss=loss, figures={**event.figures, **found})
        self.state.seconds = time.monotonic() - self._begun
        has_news = event.loss is not None or event.validation_loss is not None
        is_enough = has_news and bool(self._watch(event))
        if is_best or (event.loss is not None and event.step % self.config.checkpoint_every == 0):
            self._save()
        if asked:
            return "interrupted"
        if self.config.patience and self.state.n_worse >= self.config.patience:
            return "early"
        return "asked" if is_enough else None

    def _is_to_be_validated(self) -> bool:
        step = self.state.step
        every = self.config.eval_every or self.data.n_batches
        is_due = step % every == 0 or step == self.n_steps
        return bool(self.data.validation) and is_due and self.state.validated != step

    def _validate(self, asked: Asked) -> float | None:
        """The mean loss of what is never learnt from; None when somebody asked to stop."""
        sums = []
        for documents in self.data.validation:
            if asked:
                return None
            sums.append(self.learner.loss(documents))
        if asked:  # what was found may be a part
            return None
        losses, weights = zip(*sums, strict=True)
        loss = sum(losses) / math.fsum(weights)
        self._refuse("the validation loss", loss)
        return float(loss)

    def _note_validation(self, loss: float) -> bool:
        """Remember a validation, and say whether it is the best so far."""
        state = self.state
        state.validated = state.step
        if state.best_loss is None or loss < state.best_loss:
            state.best_step, state.best_loss, state.n_worse = state.step, loss, 0
            return True
        state.n_worse += 1
        return False

    def _event(self) -> Step:
        step = self.state.step
        left = self._timed / self._n_timed * (self.n_steps - step) if self._n_timed else None
        seconds = time.monotonic() - self._begun
        return Step(step, self.n_steps, step / self.data.n_batches, seconds=seconds, seconds_left=left)

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this step. No weight that is no number gets into one."""
        if not all_finite(self.learner.parameters):
            raise self._diverged("a weight", "infinite or no number", self.state.step)
        if self._checkpoints is not None and self._saved != self.state.step:
            self.state.seconds = time.monotonic() - self._begun
            self._checkpoints.save(self.state, self._optimizer)
            self._saved = self.state.step

    def _result(self, stopped: str) -> Result:
        best = self.state.best_step
        takes_best = self.config.patience is not None and stopped in ("end", "early")
        if takes_best and best is not None and best != self.state.step and self._checkpoints is not None:
            self._checkpoints.restore_weights(self.learner.parameters, best)
            return Result(stopped, self.state, best, self._timed)
        return Result(stopped, self.state, self.state.step, self._timed)

    def _refuse(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self._diverged(what, str(value), self.state.step + 1)

    def _diverged(self, what: str, became: str, step: int) -> TrainingError:
        saved = self._saved
        kept = "no checkpoint was written yet" if saved is None else f"the checkpoint of step {saved} is kept"
        return TrainingError(
            f"{what} became {became} at step {step}, so training cannot go on; {kept}. A lower learning_rate than "
            f"{self.config.learning_rate} may help",
            parameter="learning_rate",
        )
