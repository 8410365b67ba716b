"""From a model and files of examples to an adapter: where data, learner and loop meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm import checks
from edgellm.arch.adapters import save_adapter
from edgellm.engine.model import Model
from edgellm.errors import FileProblem, UsageError
from edgellm.files import sha256_of
from edgellm.formats.adapters import Adapter
from edgellm.train.config import SETTINGS_OF, FullConfig, LoraConfig, TrainConfig
from edgellm.train.data import order
from edgellm.train.data.config import LEAST_LENGTH, DataConfig
from edgellm.train.data.dataset import Dataset, read_dataset
from edgellm.train.data.dataset import Summary as DataSummary
from edgellm.train.data.kinds import TO_IMITATE
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import Documents
from edgellm.train.full import FullLearner, check_memory
from edgellm.train.loop import Step
from edgellm.train.methods import adapter_learner
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner
from edgellm.train.one_run import alone_in
from edgellm.train.session import Session, Summary
from edgellm.train.settings import as_settings
from edgellm.train.task import Plan, Task, Work

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


class Imitation:
    """Learning to say what the examples say."""

    kinds = TO_IMITATE
    settings = ()

    def advice(self, data: DataSummary, config: TrainConfig) -> list[str]:
        return []

    def digests(self) -> dict[str, str]:
        return {}

    @contextmanager
    def begin(self, plan: Plan) -> Iterator[Work]:
        n_batch = max(DEFAULT_BATCH, *(int(part.lengths.max()) for part in plan.examples))
        learnt, held = plan.examples[: plan.n_learnt], plan.examples[plan.n_learnt :]
        with closing(plan.learner(n_batch)) as learner:
            yield Work(learner, Examples(learnt, held, plan.config, n_batch), learner.adapter)


def train(
    model: Model,
    data: Paths,
    lora: LoraConfig | FullConfig | None = None,
    config: TrainConfig | None = None,
    *,
    examples: DataConfig | None = None,
    validation_data: Paths = (),
    template: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool | None = None,
    callback: Callable[[Step], object] | None = None,
    how: Any = None,
    rewards: Any = (),
) -> Adapter:
    """Train an adapter for a loaded model on files of examples.

    lora:      the small weights that are trained; a FullConfig trains all of the model's own, and what is returned then
               has them in place of the model's (see `merge_adapters`).
    data:      files of examples; see `train.data` for what they may hold, and `examples` for how they are read.
    validation_data: files of examples to validate with, beside or in place of a part of `data`.
    template:  a file with a chat template, the name of a known one, or "none"; else the model's own is used.
    output:    a folder for the adapter (in PEFT's form), settings, log, loss curve and checkpoints; None keeps none.
    resume:    go on with the run in that folder, to the same weights as if it had never stopped.
    tensorboard: whether to write event files; None does where TensorBoard is installed.
    callback:  called with each Step; True ends the run there.
    how:       None to imitate the examples; to learn from preferences or rewards, a DpoConfig, KtoConfig, OrpoConfig,
               RewardConfig, GrpoConfig or PpoConfig.
    rewards:   of GRPO and PPO, one or several, whose sum counts: functions, a `RewardModel`, or texts that
               `preference.rewards.reward_of` takes.

    The model is not changed, and has no time for others meanwhile. Raises UsageError for settings that cannot work,
    FormatError for data that cannot be used, TrainingError when the loss is no number any more, FileProblem for what
    cannot be written, BusyError for a model in use. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    """
    from edgellm.train.preference.tasks import task_of  # which imports what is here

    adapter, _ = train_adapter(
        model, data, LoraConfig() if lora is None else lora, TrainConfig() if config is None else config,
        DataConfig() if examples is None else examples,
        validation_data=validation_data, template=template, output=output, resume=resume, tensorboard=tensorboard,
        callback=callback, task=task_of(how, rewards),
    )  # fmt: skip
    return adapter


def train_adapter(
    model: Model,
    data: Paths,
    lora: LoraConfig | FullConfig,
    config: TrainConfig,
    examples: DataConfig,
    *,
    validation_data: Paths = (),
    template: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool | None = None,
    callback: Callable[[Step], object] | None = None,
    task: Task | None = None,
    told: Callable[[Dataset, list[str]], object] = lambda dataset, advice: None,
    names: Mapping[str, Any] | None = None,
) -> tuple[Adapter, Summary]:
    """As `train`, with what else there is to say.

    told:   called before training begins with the data, and what a person should know who learns from them so.
    names:  what model and data are called in the settings that are written, else their paths; and settings that only
            who calls knows.
    """
    if not isinstance(model, Model):
        raise checks.wrong("model", model, "a loaded model; edgellm.load gives one")
    if not isinstance(lora, (LoraConfig, FullConfig)):
        raise checks.wrong("lora", lora, "a LoraConfig or a FullConfig, such as LoraConfig(rank=2)")
    if not isinstance(config, TrainConfig):
        raise checks.wrong("config", config, "a TrainConfig, such as TrainConfig(steps=100)")
    if not isinstance(examples, DataConfig):
        raise checks.wrong("examples", examples, "a DataConfig, such as DataConfig(max_length=512)")
    checks.function("callback", callback)
    resume = checks.flag("resume", resume)
    tensorboard = None if tensorboard is None else checks.flag("tensorboard", tensorboard)
    template = None if template is None else checks.text_or_path("template", template)
    lora.check()
    if isinstance(lora, LoraConfig):
        _check_room_for_text(lora, model)
    else:
        check_memory(model, lora.freeze)
    task = task or Imitation()
    config = _with_activations(config, model)
    files, held_files = _paths("data", data), _paths("validation_data", validation_data)
    config.check_validation(bool(held_files))
    if not resume:
        config.check_warmup()
    folder = checks.path("output", output) if output is not None else None
    known = {"model": str(model.path), "data": files, "validation_data": held_files,
             "template": template, "tensorboard": tensorboard,
             **(names or {})}  # fmt: skip
    settings = {name: value for name, value in known.items() if value not in (None, "", [])}
    settings |= as_settings(lora, config, examples, *task.settings)
    check_run(folder, resume)

    with alone_in(folder):
        vocabulary = Vocabulary.of(model, template)
        dataset = read_dataset(files, vocabulary, task.kinds, examples)
        learnt: list[Any] = dataset.examples
        held: list[Any] = []
        if config.validation:
            learnt, held = order.split(learnt, config.validation, config.seed)
        digest = dataset.fingerprint()
        if held_files:
            more = read_dataset(held_files, vocabulary, task.kinds, examples)
            held = [*held, *more.examples]
            digest += more.fingerprint()
        told(dataset, task.advice(dataset.summary, config))

        digests = {"data_digest": digest, "model_digest": sha256_of(model.path)} if folder else {}
        plan = Plan(
            model, [*learnt, *held], len(learnt), config, examples, vocabulary,
            lora, lambda n_batch: _learner_of(model, lora, config, n_batch), folder,
            " ".join(digests.values()),
        )  # fmt: skip
        others = task.digests() if folder else {}
        session = Session(folder, settings, {**digests, **others}, resume, tensorboard)
        with task.begin(plan) as (learner, batches, adapter_now):
            summary = session.train(learner, batches, config, callback or (lambda step: None))
            adapter = adapter_now()
        if folder is not None and isinstance(lora, LoraConfig):
            _save(folder, adapter, model)
        return adapter, summary


def _save(folder: Path, adapter: Adapter, model: Model) -> None:
    """Write the result. Raises FileProblem when it cannot be written: the run's last checkpoint is there already."""
    try:
        save_adapter(folder, adapter, model.metadata)
    except OSError as problem:
        raise FileProblem(
            f"{problem.filename or folder} cannot be written: {problem.strerror}; resume writes it again from the last "
            "checkpoint, which is kept",
            parameter="resume",
        ) from None


def _check_room_for_text(lora: LoraConfig, model: Model) -> None:
    """Raise UsageError where virtual tokens leave no room: no text could ever be computed with the adapter."""
    n_ctx = model.config.n_ctx_train
    if "virtual_tokens" in SETTINGS_OF[lora.method] and lora.virtual_tokens > n_ctx - LEAST_LENGTH:
        raise UsageError(
            f"virtual_tokens is {lora.virtual_tokens}, and the context of this model holds {n_ctx} tokens with those "
            f"of the text; expected at most {n_ctx - LEAST_LENGTH}",
            parameter="virtual_tokens",
        )


def _learner_of(model: Model, kind: LoraConfig | FullConfig, config: TrainConfig, n_batch: int) -> ModelLearner:
    recompute, in_bf16 = config.gradient_checkpointing, config.precision == "mixed"
    if isinstance(kind, FullConfig):
        return FullLearner(model, n_batch=n_batch, recompute=recompute, in_bf16=in_bf16, freeze=kind.freeze)
    return adapter_learner(model, kind, n_batch=n_batch, seed=config.seed, recompute=recompute, in_bf16=in_bf16)


def check_run(folder: Path | None, resume: bool) -> None:
    """Raise UsageError for a folder where the run cannot be, before a model is loaded."""
    Session(folder, resume=resume).check()


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
    if isinstance(given, Mapping) or not isinstance(given, (str, os.PathLike, Iterable)):
        raise checks.wrong(name, given, "the path of a file of examples, or a list of such paths")
    several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return [str(checks.path(name, path)) for path in several]
