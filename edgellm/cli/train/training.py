"""What the commands share that train an adapter: their options, the run, and what is told of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import check_threads, named_path, threads_option
from edgellm.cli.train.options import settings_options, typed_settings
from edgellm.errors import UsageError
from edgellm.train.config import LoraConfig, MachineConfig, TrainConfig
from edgellm.train.data.config import DataConfig

if TYPE_CHECKING:
    from edgellm.formats.adapters import Adapter
    from edgellm.train.session import Summary
    from edgellm.train.task import Task

Command = TypeVar("Command", bound=Callable[..., Any])
Make = Callable[[type], Any]  # a parameter object of that type, of the run's settings

# What is done with the weights of a model at a path in the end, by all settings, and told of it.
Finish = Callable[[str, "Adapter", Mapping[str, Any]], Iterator[tuple[str, str]]]

VALIDATION = {"validation", "validation_data"}  # what --validation may be: how many examples, or a file of them
_SHARED = (TrainConfig, DataConfig, MachineConfig)
_OPTIONS = [
    click.argument("model", required=False, shell_complete=complete_models),
    click.option("--data", multiple=True, metavar="FILE",
                 help="Examples: JSONL, JSON, CSV, Parquet or plain text; may be given several times."),
    click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
                 help="Settings in YAML, under the names of these options (batch_size: 8); what is typed comes first."),
    click.option("--resume", is_flag=True, help="Go on with the run in DIR, which was stopped."),
    click.option("--validation", metavar="X|FILE",
                 help="Examples to validate with and not to learn from: how many, below 1 their share of all, or a "
                      "file."),
    click.option("--template", metavar="FILE|NAME",
                 help="A chat template (Jinja), or a known one's name, in place of the model's own; or none."),
    click.option("--tensorboard/--no-tensorboard", default=None,
                 help="Write event files.  [default: where TensorBoard is installed]"),
    threads_option,
]  # fmt: skip
_DORA = click.option("--dora", is_flag=True, default=None, help="The same as --method dora.")


@dataclass
class Training:
    """A run as it was asked for.

    weights: the kind of parameter object that says what is trained.
    name:   of the command. kinds: of parameter objects that it has. usual: defaults of its own.
    typed:  settings that were typed.
    target: a file that is written at the end, where the run's folder is not all.
    without: settings that mean nothing to the command.
    layout: of the weights, see `engine.layout`. Many tokens at once are as quick from the file, and tiles beside it
            would take as much memory again. Who writes answers is quicker from tiles.
    """

    name: str
    kinds: Sequence[type]
    usual: Mapping[str, Any]
    typed: dict[str, Any]
    output: Path
    config_file: Path | None
    resume: bool
    weights: type = LoraConfig
    target: Path | None = None
    without: Collection[str] = ()
    layout: str = "file"

    def go(
        self,
        task_of: Callable[[Make], Task] | None = None,
        finish: Finish | None = None,
    ) -> None:
        """Train, and tell what came of it. task_of makes the task, after everything else that was typed is checked.

        finish:  what is done with the weights, and told of it, where the run's folder is not all.
        """
        from edgellm.train.run import check_run

        refuse_own_settings(self.config_file, self.output, self.resume)
        check_run(self.output, self.resume)
        of_file, typed = self._file_settings(), typed_settings(self.typed)
        if typed.keys() & VALIDATION:  # one option, so what is typed comes before either
            of_file = {name: value for name, value in of_file.items() if name not in VALIDATION}
        settings = {**self.usual, **of_file, **typed}
        self._check_given(settings)
        self._train(settings, task_of, finish)

    def _check_given(self, settings: Mapping[str, Any]) -> None:
        """Raise UsageError where model or data are named nowhere. A run that is gone on with has named them itself."""
        from edgellm.train.session import SETTINGS

        try:
            check_given(settings)
        except UsageError as error:
            if not self.resume or self.config_file is not None:
                raise
            written = self.output / SETTINGS
            lacks = f"{written} does not name it" if written.is_file() else f"{written}, which named it, is not there"
            raise UsageError(f"{error}; {lacks}") from None

    def _file_settings(self) -> dict[str, Any]:
        """Those of the file that was named, or of the run that is gone on with."""
        from edgellm.train.session import SETTINGS
        from edgellm.train.settings import read_settings

        config_file = self.config_file
        if config_file is None and self.resume and (self.output / SETTINGS).is_file():
            config_file = self.output / SETTINGS
        found = read_settings(config_file, self.kinds) if config_file else {}
        usual = {field.name: field.default for kind in self.kinds for field in fields(kind)}
        for name in self.without:  # a run writes all of its settings, these too
            if name in found and found[name] != usual[name]:
                raise UsageError(
                    f"{config_file}: {name} is {found[name]!r:.60}, which means nothing to `edgellm train "
                    f"{self.name}`; leave it out",
                    is_of_file=True,
                )
        return found

    def _refuse_target(self, model: Path | None, settings: Mapping[str, Any]) -> None:
        """Raise UsageError for a file to write that is one of those that are read, before anything is trained."""
        from edgellm.convert.quantize import foreseen_bytes
        from edgellm.convert.targets import check_target, files_of

        if self.target is not None:
            names = [*settings["data"], *settings.get("validation_data", ()), settings.get("template")]
            n_bytes = foreseen_bytes(model, settings.get("type")) if model else 0
            sources = files_of(model, self.config_file, *(Path(name) for name in names if name))
            check_target(self.target, sources, n_bytes)

    def _train(
        self,
        settings: dict[str, Any],
        task_of: Callable[[Make], Task] | None,
        finish: Finish | None,
    ) -> None:
        from edgellm.cli import models
        from edgellm.cli.terminal import note, one_line
        from edgellm.cli.train.live import Live
        from edgellm.cli.train.outcome import outcome_lines, taught_lines
        from edgellm.cli.train.preview import summary_lines
        from edgellm.params import RuntimeConfig
        from edgellm.train.log import read_log
        from edgellm.train.run import train_adapter
        from edgellm.train.session import CURVE, LOG, last_checkpoint
        from edgellm.train.settings import made

        weights: Any = made(self.weights, settings)
        weights.check()
        config = made(TrainConfig, settings)
        config.check_validation(bool(settings.get("validation_data")))
        if not self.resume:
            config.check_warmup()
        examples, machine = made(DataConfig, settings), made(MachineConfig, settings)
        check_threads("threads", machine.threads)
        task = task_of(lambda kind: made(kind, settings)) if task_of else None
        self._refuse_target(models.find(settings["model"]), settings)
        path = models.path_of(settings["model"])
        activations = config.activations or RuntimeConfig.activations
        runtime = RuntimeConfig(n_threads=machine.threads, activations=activations, layout=self.layout)
        with models.load(path, runtime) as loaded, Live() as live:

            def show_data(dataset: Any, advice: list[str]) -> None:
                for line in [*summary_lines(dataset, examples), *(f"{'note':<12}{line}" for line in advice)]:
                    live.note(line)

            try:
                adapter, summary = train_adapter(
                    loaded, settings["data"], weights, config, examples, task=task,
                    validation_data=settings.get("validation_data", ()), template=settings.get("template"),
                    output=self.output, resume=self.resume, tensorboard=machine.tensorboard, callback=live,
                    told=show_data, names={name: settings.get(name) for name in ("model", "threads", "type")},
                )  # fmt: skip
            except KeyboardInterrupt:
                live.close()
                if (step := last_checkpoint(self.output)) is not None:
                    again = f"edgellm train {self.name} --resume -o {self.output}"
                    note(f"stopped; `{again}` goes on from step {step}")
                raise
        entries = read_log(self.output / LOG)
        told = [*outcome_lines(summary, live.step, _held_out(entries, summary)), *taught_lines(entries)]
        wrote = ", ".join([*([] if finish else ["the adapter"]), LOG, CURVE])
        told += [*(finish(str(path), adapter, settings) if finish else []), ("wrote", f"{self.output}: {wrote}")]
        for name, line in told:
            click.echo(one_line(f"{name:<12}{line}"))


def training_options(
    name: str,
    *kinds: type,
    usual: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    weights: type = LoraConfig,
    output: tuple[str, str] = ("DIR", "A folder for the adapter, and for log, loss curve and checkpoints of the run."),
) -> Callable[[Command], Command]:
    """Give a command all options of a run; it receives the run as `training`, and options of its own as they are.

    weights:  see `Training`. output: what -o is called in the help, and what it is.
    kinds:    of parameter objects, beside those that all commands have. usual and without: see `settings_options`.
    """
    every = (weights, *_SHARED, *kinds)
    names = {field.name for kind in every for field in fields(kind)} | {"model", "data", "template"}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_training(
            output: Path, config_file: Path | None, resume: bool, validation: str | None, tensorboard: bool | None,
            n_threads: int | None, dora: bool | None = None, **given: Any,
        ) -> Any:  # fmt: skip
            typed = {name: given.pop(name) for name in list(given) if name in names} | _validation(validation)
            typed |= {"tensorboard": tensorboard, "threads": n_threads}
            typed |= _method(dora, typed.get("method"))
            training = Training(name, every, usual or {}, typed, output, config_file, resume, weights, None, without)
            return command(training=training, **given)

        decorated: Any = _DORA(with_training) if weights is LoraConfig else with_training
        decorated = settings_options(*every, defaults=usual, without=without)(decorated)
        where = click.option("-o", "--output", type=click.Path(), required=True, metavar=output[0], help=output[1],
                             callback=named_path)  # fmt: skip
        for option in reversed([*_OPTIONS[:2], where, *_OPTIONS[2:]]):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def check_given(settings: Mapping[str, Any]) -> None:
    """Raise UsageError where model or data are named neither in words nor in a file."""
    for name, word in (("model", "MODEL"), ("data", "--data")):
        if not settings.get(name):
            raise UsageError(f"{word} is missing: type it, or put {name} into the --config file")


def refuse_own_settings(config_file: Path | None, folder: Path, resume: bool) -> None:
    """Raise UsageError for a --config file that a new run would write over with the settings that are in effect."""
    from edgellm.train.session import SETTINGS

    written = folder / SETTINGS
    if config_file is None or resume or not config_file.exists() or not written.exists():
        return
    if written.samefile(config_file):
        raise UsageError(
            f"--config {config_file} is where a run in {folder} writes all of its settings, so yours would be lost; "
            "give the file another name, or choose another folder"
        )


def _method(dora: bool | None, method: str | None) -> dict[str, Any]:
    """What --dora says of the method, beside --method."""
    if not dora:
        return {}
    if method not in (None, "dora"):
        raise UsageError(f"--dora is --method dora, and --method {method} was typed too; choose one")
    return {"method": "dora"}


def _validation(typed: str | None) -> dict[str, Any]:
    """A number, or a file of examples."""
    if typed is None:
        return {}
    try:
        number = float(typed)
    except ValueError:
        return {"validation_data": [typed]}
    try:
        TrainConfig(validation=number)
    except UsageError as error:
        raise UsageError(str(error).replace("validation", "--validation", 1)) from None
    return {"validation": number}


def _held_out(entries: Sequence[Mapping[str, Any]], summary: Summary) -> dict[str, tuple[float, float]]:
    """What was found on held-out examples before training, and with the weights that were taken."""
    found = {
        entry["step"]: {name.removeprefix("validation_"): value for name, value in entry["figures"].items()
                        if name.startswith("validation_")}
        for entry in entries if entry.get("validation_loss") is not None and entry.get("figures")
    }  # fmt: skip
    if not found:
        return {}
    before = found[min(found)]
    after = found.get(summary.weights_of) or found[max(found)]
    return {name: (before[name], after[name]) for name in before if name in after}
