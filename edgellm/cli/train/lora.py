"""edgellm train lora"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgellm.cli.options import threads_option
from edgellm.cli.train.options import settings_options, typed_settings
from edgellm.errors import UsageError
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig

_KINDS = (LoraConfig, TrainConfig, DataConfig)


@click.command("lora")
@click.argument("model", required=False)
@click.option("--data", multiple=True, metavar="FILE",
              help="Examples: JSONL, JSON, CSV, Parquet or plain text; may be given several times.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="A folder for the adapter, and for log, loss curve and checkpoints of the run.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Settings in YAML, under the names of these options (batch_size: 8); what is typed comes first.",
              )  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the run in DIR, which was stopped.")
@click.option("--validation", metavar="X|FILE",
              help="Examples to validate with and not to learn from: how many, below 1 their share of all, or a file."
              )  # fmt: skip
@click.option("--template", metavar="FILE", help="A chat template (Jinja) in place of the model's own; or none.")
@settings_options(*_KINDS)
@click.option("--dora", "dora", is_flag=True, default=None, help="The same as --method dora.")
@click.option("--tensorboard/--no-tensorboard", default=None,
              help="Write event files.  [default: where TensorBoard is installed]")  # fmt: skip
@threads_option
def command(
    model: str | None,
    output: Path,
    config_file: Path | None,
    resume: bool,
    validation: str | None,
    tensorboard: bool | None,
    n_threads: int | None,
    dora: bool | None,
    **typed: Any,
) -> None:
    """Teach a model new things by small weights beside its own (LoRA).

    The model's file stays as it is, quantized or not. The adapter in DIR is PEFT's, and of use at once:

    \b
      edgellm train lora smollm2-135m --data facts.jsonl -o facts
      edgellm run smollm2-135m --lora facts

    Ctrl-C saves a checkpoint, from which --resume goes on: edgellm train lora --resume -o facts.
    """
    typed |= {"model": model, **_validation(validation), **_method(dora, typed["method"])}
    settings = _file_settings(config_file, output, resume) | typed_settings(typed)
    for name, word in (("model", "MODEL"), ("data", "--data")):
        if not settings.get(name):
            raise UsageError(f"{word} is missing: type it, or put {name} into the --config file")
    _train(settings, output, resume, tensorboard, n_threads)


def _method(dora: bool | None, method: str | None) -> dict[str, Any]:
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


def _file_settings(config_file: Path | None, output: Path, resume: bool) -> dict[str, Any]:
    """Those of the file that was named, or of the run that is gone on with."""
    from edgellm.train.session import SETTINGS
    from edgellm.train.settings import read_settings

    if config_file is None and resume and (output / SETTINGS).is_file():
        config_file = output / SETTINGS
    return read_settings(config_file, _KINDS) if config_file else {}


def _train(
    settings: dict[str, Any], output: Path, resume: bool, tensorboard: bool | None, n_threads: int | None
) -> None:
    from edgellm.cli import models
    from edgellm.cli.terminal import note, one_line
    from edgellm.cli.train.live import Live
    from edgellm.cli.train.outcome import outcome_lines
    from edgellm.cli.train.preview import summary_lines
    from edgellm.params import RuntimeConfig
    from edgellm.train.run import check_run, train_adapter
    from edgellm.train.session import CURVE, LOG, last_checkpoint
    from edgellm.train.settings import made

    lora, config, examples = made(LoraConfig, settings), made(TrainConfig, settings), made(DataConfig, settings)
    check_run(output, resume)
    path = models.path_of(settings["model"])
    runtime = RuntimeConfig(n_threads=n_threads, activations=config.activations or RuntimeConfig.activations)
    with models.load(path, runtime) as loaded, Live() as live:

        def show_data(dataset: Any) -> None:
            for line in summary_lines(dataset, examples):
                live.note(line)

        try:
            _, summary = train_adapter(
                loaded, settings["data"], lora, config, examples, validation_data=settings.get("validation_data", ()),
                template=settings.get("template"), output=output, resume=resume, tensorboard=tensorboard,
                callback=live, told=show_data, names={"model": settings["model"]},
            )  # fmt: skip
        except KeyboardInterrupt:
            live.close()
            if (step := last_checkpoint(output)) is not None:
                note(f"stopped; `edgellm train lora --resume -o {output}` goes on from step {step}")
            raise
    for name, line in [*outcome_lines(summary, live.step), ("wrote", f"{output}: the adapter, {LOG}, {CURVE}")]:
        click.echo(one_line(f"{name:<12}{line}"))
