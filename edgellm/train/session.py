"""A run and the folder where it leaves what it does.

    train.yaml      all settings, so that the same run can be had again
    log.jsonl       a line for every step; loss.svg, the same as a picture
    checkpoints/    what the run goes on from when it was stopped
    tensorboard/    event files, where TensorBoard is installed or was asked for

The result itself is the caller's to put beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgellm.errors import FileProblem, UsageError
from edgellm.files import atomic_write
from edgellm.machine import peak_memory
from edgellm.machine.energy import EnergyMeter
from edgellm.train.checkpoint import Checkpoints
from edgellm.train.config import TrainConfig
from edgellm.train.curve import loss_curve
from edgellm.train.learner import Learner
from edgellm.train.log import Log, as_entry, read_log
from edgellm.train.loop import Batches, Run, Step
from edgellm.train.settings import is_own, write_settings
from edgellm.train.tensorboard import EventFile, is_installed

SETTINGS, LOG, CURVE, CHECKPOINTS, EVENTS = "train.yaml", "log.jsonl", "loss.svg", "checkpoints", "tensorboard"

# Results of others, which a new run would write over.
RESULTS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", LOG)

# Settings that change what is kept or looked at but no weight, and names, for which digests stand.
FREE = {"checkpoint_every", "keep_checkpoints", "eval_every", "patience", "skip_bad", "model", "data", "template",
        "threads", "tensorboard", "type"}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """How a run ended; see `Result`. Times, tokens and joules are those of this process.

    loss:        the mean of the last steps'; validation_loss: the lowest.
    seconds:     of the whole run; train_seconds without validations and checkpoints.
    joules:      that this machine used; None where it does not tell.
    peak_memory: the most bytes that this process has had.
    """

    stopped: str
    step: int
    n_steps: int
    weights_of: int
    loss: float | None
    validation_loss: float | None
    n_tokens: int
    seconds: float
    train_seconds: float
    joules: float | None
    peak_memory: int

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class Session:
    """Where and how a run is kept.

    folder:    where it leaves what it does; None leaves nothing.
    settings:  all that it was asked for, by name.
    digests:   of data and model, by names that end in "_digest": a resumed run must have the same.
    resume:    whether to go on from the last checkpoint in the folder.
    tensorboard: whether to write event files; None does where TensorBoard is installed.
    """

    folder: Path | None = None
    settings: Mapping[str, Any] | None = None
    digests: Mapping[str, str] | None = None
    resume: bool = False
    tensorboard: bool | None = None

    def check(self) -> None:
        """Raise UsageError for a folder that does not suit, before hours of work begin; FileProblem for one that cannot
        be read.
        """
        try:
            self._check()
        except OSError as problem:
            raise FileProblem(f"{problem.filename or self.folder} cannot be read: {problem.strerror}") from None

    def _check(self) -> None:
        if self.folder is None:
            if self.resume:
                raise UsageError(
                    "resume goes on in a folder; give that of the run that was stopped", parameter="resume"
                )
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file; expected a folder for the result")
        steps = self._checkpoints(self.folder).steps()
        if steps and not self.resume:
            raise UsageError(
                f"{self.folder} holds a run that is at step {steps[-1]}; resume goes on with it, or choose another "
                "folder",
                parameter="resume",
            )
        if self.resume and not self.folder.exists():
            raise UsageError(
                f"{self.folder} does not exist, so there is no run to go on with; expected the folder of one that was "
                "stopped, or leave out resume to begin",
                parameter="resume",
            )
        if self.resume and not steps:
            raise UsageError(
                f"{self.folder} holds no checkpoint to go on from; leave out resume to begin", parameter="resume"
            )
        if not steps and (kept := [name for name in RESULTS if _is_written(self.folder / name)]):
            raise UsageError(
                f"{self.folder} holds {', '.join(kept)} and no checkpoint, and a new run would write over that; choose "
                "another folder, or remove what is there"
            )
        settings = self.folder / SETTINGS
        if not steps and _is_written(settings) and not is_own(settings):
            raise UsageError(
                f"{settings} is there, and a new run would write its settings over that; give that file another name, "
                "or choose another folder"
            )

    def train(
        self, learner: Learner, data: Batches, config: TrainConfig, watch: Callable[[Step], object] = lambda step: None
    ) -> Summary:
        """Train a learner, whose weights are then those of the result. Raises as `Run` does."""
        self.check()
        meter, losses = EnergyMeter(), _Recent()
        writers: list[Log | EventFile] = []

        def note(step: Step) -> object:
            meter.joules()  # its counters must not go round unseen
            losses.add(step.loss)
            entry = as_entry(step)
            for writer in writers:
                writer.write(entry)
            return watch(step)

        with ExitStack() as opened:
            folder = self.folder
            if folder is None and config.patience is not None:  # the best weights must be somewhere
                folder = Path(opened.enter_context(TemporaryDirectory(prefix="edgellm-")))
            config.check_length(data.n_batches)
            checkpoints = self._checkpoints(folder, config.keep_checkpoints) if folder else None
            run = Run(learner, data, config, checkpoints, note)
            if self.resume:
                run.resume()
            else:
                config.check_warmup(run.n_steps)
            run.check_room()
            first_tokens, begun = run.state.n_tokens, time.monotonic()
            for writer in self._writers(run.state.step if self.resume else None):
                writers.append(writer)
                opened.callback(writer.close)
            try:
                result = run.go()
            except BaseException:
                with suppress(FileProblem):  # what ended the run is told
                    self._draw()
                raise
            self._draw()
        return Summary(
            result.stopped, result.state.step, run.n_steps, result.weights_of, losses.mean(), result.state.best_loss,
            result.state.n_tokens - first_tokens, time.monotonic() - begun,
            result.train_seconds, meter.joules(), peak_memory(),
        )  # fmt: skip

    def _checkpoints(self, folder: Path, keep: int = 1) -> Checkpoints:
        identity = {name: value for name, value in (self.settings or {}).items() if name not in FREE}
        return Checkpoints(folder / CHECKPOINTS, {**identity, **(self.digests or {})}, keep)

    def _writers(self, resumed_at: int | None) -> Iterator[Log | EventFile]:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_settings(self.folder / SETTINGS, self.settings or {})
        except OSError as problem:
            raise FileProblem(f"{problem.filename or self.folder} cannot be written: {problem.strerror}") from None
        yield Log(self.folder / LOG, resumed_at)
        if self.tensorboard or (self.tensorboard is None and is_installed()):
            yield EventFile(self.folder / EVENTS, resumed_at)

    def _draw(self) -> None:
        if self.folder is None:
            return
        entries = read_log(self.folder / LOG)
        title = f"{self.folder.resolve().name}: loss"
        try:
            with atomic_write(self.folder / CURVE) as file:
                file.write(loss_curve(entries, title).encode())
        except OSError as problem:
            raise FileProblem(f"{self.folder / CURVE} cannot be written: {problem.strerror}") from None


def last_checkpoint(folder: Path) -> int | None:
    """The step that a run in a folder would go on from; None where there is none."""
    return max(Checkpoints(folder / CHECKPOINTS, {}).steps(), default=None)


def _is_written(path: Path) -> bool:
    """Whether a file holds something. A log is empty where a run ended before its first step."""
    return path.is_file() and path.stat().st_size > 0


class _Recent:
    """The mean of the last losses."""

    def __init__(self, most: int = 20) -> None:
        self._most = most
        self._losses: list[float] = []

    def add(self, loss: float | None) -> None:
        if loss is not None:
            self._losses = [*self._losses, loss][-self._most :]

    def mean(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None
