"""The loop on a small learner with exact gradients: what it computes, when it looks and saves, and how it ends."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import TrainingError
from edgellm.train.checkpoint import Checkpoints
from edgellm.train.config import TrainConfig
from edgellm.train.documents import Documents
from edgellm.train.loop import Result, Run, Step
from tests.train.bigram import Bigram, Counting, document

QUICK = {"learning_rate": 0.05, "warmup": 0, "epochs": 2.0}


class Watched:
    """A run with all steps that it told."""

    def __init__(
        self,
        folder: Path | None = None,
        learner: Bigram | None = None,
        data: Counting | None = None,
        at: Callable[[Step], object] = lambda step: None,
        keep: int = 2,
        **settings,
    ) -> None:
        self.learner = learner or Bigram()
        self.data = data or Counting()
        self.steps: list[Step] = []
        self.checkpoints = Checkpoints(folder, {"seed": 0}, keep) if folder else None
        self.run = Run(self.learner, self.data, TrainConfig(**(QUICK | settings)), self.checkpoints, self._watch)
        self._at = at

    def _watch(self, step: Step) -> object:
        self.steps.append(step)
        return self._at(step)

    def go(self) -> Result:
        return self.run.go()

    @property
    def losses(self) -> list[float | None]:
        return [step.loss for step in self.steps if step.step]


def test_it_learns() -> None:
    watched = Watched(learning_rate=0.3, epochs=10.0)
    result = watched.go()
    validations = [step.validation_loss for step in watched.steps if step.validation_loss is not None]
    assert result.stopped == "end" and result.state.step == result.weights_of == watched.run.n_steps == 60
    assert len(validations) == 11 and validations[0] == pytest.approx(math.log(12), rel=0.05)
    assert validations[-1] < 0.7 * validations[0]
    assert watched.data.asked == list(range(10))


def test_ten_steps_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    data, learner = Counting(), Bigram(dropout=0.0)
    table, bias = (torch.nn.Parameter(torch.tensor(learner.parameters[name])) for name in ("table", "bias"))
    optimizer = torch.optim.AdamW([table, bias], lr=0.05, weight_decay=0.1)
    watched = Watched(learner=learner, data=data, schedule="constant", weight_decay=0.1, clip=0.2, steps=10)
    watched.go()
    batches = [batch for epoch in range(2) for batch in data.epoch(epoch)][:10]
    for step, batch in zip(watched.steps[1:] if watched.steps[0].step == 0 else watched.steps, batches, strict=True):
        whole = Documents.joined(batch)
        logits = table[torch.tensor(whole.ids)] + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(whole.targets).long(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([table, bias], 0.2)
        optimizer.step()
        assert step.loss == pytest.approx(loss.item(), rel=1e-5)
        assert step.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        assert step.n_tokens == len(whole)
    np.testing.assert_allclose(learner.parameters["table"], table.detach().numpy(), atol=1e-5)


def test_passes_of_a_batch_are_one_batch() -> None:
    """However a logical batch is cut, and whatever its documents' weights: the gradient is that of the whole."""
    texts = [document([1, 2, 3]), document([4, 5, 6, 7, 8, 9]), document([2, 2])]
    texts[1] = Documents(texts[1].ids, texts[1].lengths, texts[1].targets, 3 * texts[1].weights)

    class Cut(Counting):
        def __init__(self, batch: list[Documents]) -> None:
            self.batch, self.n_batches, self.validation, self.asked = batch, 1, [], []

        def epoch(self, number: int) -> list[list[Documents]]:
            return [self.batch]

    results = []
    for batch in (texts, [Documents.joined(texts)]):
        watched = Watched(learner=Bigram(dropout=0.0), data=Cut(batch), steps=3)
        watched.go()
        results.append((watched.losses, watched.learner.parameters["table"]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_the_learner_is_told_every_pass() -> None:
    watched = Watched(data=Counting(batch_size=4), steps=2)
    watched.go()
    assert watched.learner.places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("settings", "validated"),
    [({}, [0, 6, 12]), ({"eval_every": 5}, [0, 5, 10, 12]), ({"epochs": 0.5}, [0, 3]), ({"steps": 8}, [0, 6, 8])],
)
def test_when_it_validates(settings, validated: list[int]) -> None:
    watched = Watched(**settings)
    watched.go()
    assert [step.step for step in watched.steps if step.validation_loss is not None] == validated


def test_without_validation_there_is_no_step_0() -> None:
    watched = Watched(data=Counting(n_validation=0), steps=3)
    watched.go()
    assert [step.step for step in watched.steps] == [1, 2, 3]
    assert {step.validation_loss for step in watched.steps} == {None}


def test_what_a_step_tells() -> None:
    watched = Watched(steps=9)
    watched.go()
    for number, step in enumerate(watched.steps):
        assert (step.step, step.n_steps, step.epoch) == (number, 9, number / 6)
        assert step.seconds_left is None if number == 0 else step.seconds_left >= 0
    assert watched.steps[-1].seconds_left == 0
    assert watched.run.state.n_tokens == sum(step.n_tokens for step in watched.steps)


@pytest.mark.parametrize("stop_at", [0, 1, 7])
def test_whoever_watches_may_end_it(stop_at: int) -> None:
    watched = Watched(at=lambda step: step.step == stop_at)
    result = watched.go()
    assert (result.stopped, result.state.step, watched.steps[-1].step) == ("asked", stop_at, stop_at)


def test_an_early_stop_takes_the_best_weights(tmp_path: Path) -> None:
    kept: dict[int, np.ndarray] = {}
    watched = Watched(
        tmp_path, learning_rate=0.5, schedule="constant", epochs=200.0, patience=3, eval_every=2,
        at=lambda step: kept.update({step.step: watched.learner.parameters["table"].copy()}),
    )  # fmt: skip
    result = watched.go()
    losses = {step.step: step.validation_loss for step in watched.steps if step.validation_loss is not None}
    best = min(losses, key=lambda step: losses[step])
    assert (result.stopped, result.weights_of, result.state.step) == ("early", best, best + 6)
    np.testing.assert_array_equal(watched.learner.parameters["table"], kept[best])
    assert best in watched.checkpoints.steps()


def test_checkpoints_are_the_last_and_the_best(tmp_path: Path) -> None:
    rising = Counting()
    watched = Watched(tmp_path, data=rising, keep=2, epochs=4.0, checkpoint_every=3, eval_every=6)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    watched.run._validate = lambda asked: next(losses)  # the best is that of step 6
    watched.go()
    assert watched.checkpoints.steps() == [6, 21, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}.safetensors" for n in (6, 21, 24)]


class Poisoned(Bigram):
    """Its losses, gradients or weights are no numbers any more from some pass on."""

    def __init__(self, what: str, value: float, first: int) -> None:
        super().__init__()
        self.what, self.value, self.first = what, value, first

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        loss = super().loss_and_gradients(documents, scale)
        if self.places[-1][0] >= self.first:
            if self.what == "gradient":
                self.gradients["table"][3, 3] = self.value
            elif self.what == "loss":
                return self.value
        return loss

    def loss(self, documents: Documents) -> tuple[float, float]:
        if self.what == "validation" and len(self.places) > 3 * self.first:
            return self.value, 1.0
        return super().loss(documents)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient", "validation"])
def test_no_number_any_more(tmp_path: Path, what: str, value: float) -> None:
    watched = Watched(tmp_path, learner=Poisoned(what, value, first=7), checkpoint_every=3, eval_every=4)
    with pytest.raises(TrainingError) as error:
        watched.go()
    text = str(error.value)
    saved = watched.checkpoints.steps()[-1]
    assert f"so training cannot go on; the checkpoint of step {saved} is kept. A lower learning_rate than 0.05" in text
    assert saved in (6, 8 - 2) and error.value.parameter == "learning_rate"
    again = Watched(tmp_path)
    again.run.resume()
    assert all(np.isfinite(array).all() for array in again.learner.parameters.values())


def test_a_weight_that_is_no_number_gets_into_no_checkpoint(tmp_path: Path) -> None:
    def spoil(step: Step) -> None:
        if step.step == 6:
            watched.learner.parameters["bias"][2] = math.inf

    watched = Watched(tmp_path, checkpoint_every=3, data=Counting(n_validation=0), at=spoil)
    with pytest.raises(
        TrainingError, match=r"a weight became infinite or no number at step 6, .* the checkpoint of step 3 is kept"
    ):
        watched.go()
    assert watched.checkpoints.steps() == [3]


def test_a_batch_without_anything_to_learn() -> None:
    data = Counting(n_validation=0)
    data.texts = [[5] for _ in data.texts]
    with pytest.raises(TrainingError, match="the batch of step 1 has no token to learn"):
        Watched(data=data).go()


def test_an_epoch_of_fewer_batches_than_promised_is_seen() -> None:
    data = Counting(n_validation=0)
    data.epoch = lambda number: iter([])  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="epoch 0 has fewer batches"):
        Watched(data=data).go()


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="other signals")


@needs_signals
@pytest.mark.parametrize("inside", ["a pass", "a validation", "the watching"])
def test_ctrl_c_saves_and_ends(tmp_path: Path, inside: str) -> None:
    class Interrupting(Bigram):
        def loss_and_gradients(self, documents: Documents, scale: float) -> float:
            if inside == "a pass" and self.places[-1] == (6, 1):
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss_and_gradients(documents, scale)

        def loss(self, documents: Documents) -> tuple[float, float]:
            if inside == "a validation" and self.places and self.places[-1][0] == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(documents)

    def watch(step: Step) -> None:
        if inside == "the watching" and step.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    watched = Watched(tmp_path, learner=Interrupting(), at=watch)
    with pytest.raises(KeyboardInterrupt):
        watched.go()
    assert signal.getsignal(signal.SIGINT) is before
    assert watched.checkpoints.steps()[-1] == 6
    straight, rest = Watched(), Watched(tmp_path)
    straight.go()
    rest.run.resume()
    rest.go()
    assert rest.run.state.best_loss == straight.run.state.best_loss
    assert watched.losses + rest.losses[rest.losses.count(None) :] == straight.losses
    np.testing.assert_array_equal(rest.learner.parameters["table"], straight.learner.parameters["table"])


@needs_signals
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    class Slow(Bigram):
        def loss_and_gradients(self, documents: Documents, scale: float) -> float:
            if len(self.places) == 20:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("it went on")
            return super().loss_and_gradients(documents, scale)

    watched = Watched(tmp_path, learner=Slow(), checkpoint_every=4, data=Counting(n_validation=0))
    with pytest.raises(KeyboardInterrupt):
        watched.go()
    assert watched.checkpoints.steps() == [4]


def test_off_the_main_thread_it_trains_too() -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(Watched(steps=3).go()))
    thread.start()
    thread.join()
    assert results[0].stopped == "end"
