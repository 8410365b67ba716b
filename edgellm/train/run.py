"""From a model and files of examples to an adapter: where data, learner and loop meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm import checks
from edgellm.arch.adapters import save_adapter
from edgellm.engine.model import Model
from edgellm.errors import UsageError
from edgellm.files import sha256_of
from edgellm.formats.adapters import Adapter
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data import order
from edgellm.train.data.config import DataConfig
from edgellm.train.data.dataset import Dataset, read_dataset
from edgellm.train.data.kinds import TO_IMITATE
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import Documents
from edgellm.train.loop import Step
from edgellm.train.lora import DEFAULT_BATCH, LoraLearner
from edgellm.train.session import Session, Summary
from edgellm.train.settings import as_settings

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Examples:
    """The batches of a run; see `loop.Batches`. They depend on seed, epoch and place alone."""

    def __init__(
        self, learnt: Sequence[Documents], held: Sequence[Documents], config: TrainConfig, n_batch: int
    ) -> None:
        self._learnt, self._n_batch = learnt, n_batch
        self._order = order.Batches(len(learnt), config.batch_size * config.accumulate, config.seed)
        self.n_batches = self._order.n_per_epoch
        self.validation = order.passes(held, n_batch)

    def epoch(self, number: int) -> Iterator[list[Documents]]:
        for step in range(number * self.n_batches, (number + 1) * self.n_batches):
            yield order.passes([self._learnt[n] for n in self._order.at(step)], self._n_batch)


def train(
    model: Model,
    data: Paths,
    lora: LoraConfig | None = None,
    config: TrainConfig | None = None,
    *,
    examples: DataConfig | None = None,
    validation_data: Paths = (),
    template: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool | None = None,
    callback: Callable[[Step], object] | None = None,
) -> Adapter:
    """Train an adapter for a loaded model on files of examples.

    data:      files of examples; see `train.data` for what they may hold, and `examples` for how they are read.
    validation_data: files of examples to validate with, beside or in place of a part of `data`.
    template:  a file with a chat template, or "none"; else the model's own is used.
    output:    a folder for the adapter (in PEFT's form), settings, log, loss curve and checkpoints; None keeps none.
    resume:    go on with the run in that folder, to the same weights as if it had never stopped.
    tensorboard: whether to write event files; None does where TensorBoard is installed.
    callback:  called with each Step; True ends the run there.

    The model is not changed, and has no time for others meanwhile. Raises UsageError for settings that cannot work,
    FormatError for data that cannot be used, TrainingError when the loss is no number any more, FileProblem for what
    cannot be written, BusyError for a model in use. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    """
    adapter, _ = train_adapter(
        model, data, lora or LoraConfig(), config or TrainConfig(), examples or DataConfig(),
        validation_data=validation_data, template=template, output=output, resume=resume, tensorboard=tensorboard,
        callback=callback,
    )  # fmt: skip
    return adapter


def train_adapter(
    model: Model,
    data: Paths,
    lora: LoraConfig,
    config: TrainConfig,
    examples: DataConfig,
    *,
    validation_data: Paths = (),
    template: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool | None = None,
    callback: Callable[[Step], object] | None = None,
    told: Callable[[Dataset], object] = lambda dataset: None,
    names: Mapping[str, Any] | None = None,
) -> tuple[Adapter, Summary]:
    """As `train`, with what else there is to say.

    told:   called with the data before training begins.
    names:  what model and data are called in the settings that are written; else their paths.
    """
    _check_arguments(model, lora, config)
    config = _with_activations(config, model)
    folder = checks.path("output", output) if output is not None else None
    files, held_files = _paths("data", data), _paths("validation_data", validation_data)
    known = {"model": str(model.path), "data": files, "validation_data": held_files,
             "template": None if template is None else os.fspath(template), **(names or {})}  # fmt: skip
    settings = {name: value for name, value in known.items() if value} | as_settings(lora, config, examples)
    check_run(folder, resume)

    vocabulary = Vocabulary.of(model, None if template is None else os.fspath(template))
    dataset = read_dataset(files, vocabulary, TO_IMITATE, examples)
    learnt: list[Any] = dataset.examples
    held: list[Any] = []
    if config.validation:
        learnt, held = order.split(learnt, config.validation, config.seed)
    digest = dataset.fingerprint()
    if held_files:
        more = read_dataset(held_files, vocabulary, TO_IMITATE, examples)
        held = [*held, *more.examples]
        digest += more.fingerprint()
    told(dataset)

    digests = {"data_digest": digest, "model_digest": sha256_of(model.path)} if folder else {}
    n_batch = max(DEFAULT_BATCH, *(int(part.lengths.max()) for part in [*learnt, *held]))
    passes = {"recompute": config.gradient_checkpointing, "in_bf16": config.precision == "mixed"}
    with closing(LoraLearner(model, lora, n_batch=n_batch, seed=config.seed, **passes)) as learner:
        session = Session(folder, settings, digests, resume, tensorboard)
        summary = session.train(
            learner, Examples(learnt, held, config, n_batch), config, callback or (lambda step: None)
        )
        adapter = learner.adapter()
    if folder is not None:
        save_adapter(folder, adapter, model.metadata)
    return adapter, summary


def check_run(folder: Path | None, resume: bool) -> None:
    """Raise UsageError for a folder where the run cannot be, before a model is loaded."""
    Session(folder, resume=resume).check()


def _check_arguments(model: Model, lora: LoraConfig, config: TrainConfig) -> None:
    """Raise UsageError for what is no model, and settings that cannot be obeyed yet."""
    if not isinstance(model, Model):
        raise checks.wrong("model", model, "a loaded model; edgellm.load gives one")


def _with_activations(config: TrainConfig, model: Model) -> TrainConfig:
    own = model._runner.target.activations
    if config.activations not in (None, own):
        raise UsageError(
            f"activations is {config.activations!r}, and the model was loaded with {own!r}; load it with what it is to "
            "be trained with",
            parameter="activations",
        )
    return replace(config, activations=own)


def _paths(name: str, given: Paths) -> list[str]:
    several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return [str(checks.path(name, path)) for path in several]
