"""What a run shows while it goes on: one line that renews itself, and a line for each validation."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from edgellm.cli.progress import Progress

if TYPE_CHECKING:
    from edgellm.train.loop import Step

_FIGURES = ("reward", "accuracy", "margin", "busiest_expert")  # those that say most
_NEW = 0.1  # of the newest loss in the one that is shown, so that it can be read


class Live:
    """Call it with each step. It knows the last one, `step`."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self._loss: float | None = None
        self._progress = Progress("training")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def __call__(self, step: Step) -> None:
        self.step = step
        if step.loss is not None:
            self._loss = step.loss if self._loss is None else self._loss + _NEW * (step.loss - self._loss)
        if step.validation_loss is not None:
            at = f"step {step.step} of {step.n_steps}" if step.step else "before the first step"
            self._progress.note(f"{at}: validation loss {step.validation_loss:.4f}")
        self._progress(step.step, step.n_steps, self._words(step))

    def note(self, text: str) -> None:
        self._progress.note(text)

    def close(self) -> None:
        """End the line."""
        self._progress.__exit__(None, None, None)

    def _words(self, step: Step) -> str:
        words = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        words += [f"{name.replace('_', ' ')} {step.figures[name]:.3f}" for name in _FIGURES if name in step.figures]
        if step.tokens_per_second is not None:
            words.append(f"{step.tokens_per_second:.0f} tok/s")
        if step.seconds_left is not None:
            words.append(f"{duration(step.seconds_left)} left")
        return ", ".join(words) or "starting"


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
