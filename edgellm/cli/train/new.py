"""edgellm train new"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import check_threads, checked_by, named_path, threads_option
from edgellm.cli.train.options import settings_options, typed_settings
from edgellm.errors import UsageError
from edgellm.train.config import TrainConfig
from edgellm.train.new.defaults import DEFAULTS

if TYPE_CHECKING:
    from edgellm.train.new.config import NewConfig
    from edgellm.train.new.run import Prepared


@click.command("new")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Shape, tokenizer and training in YAML: n_layers: 6, n_vocab: 1024, learning_rate: 0.002, ...; what "
              "is typed comes first.")  # fmt: skip
@click.option("--data", multiple=True, metavar="TEXT",
              help="The text: plain, JSONL, JSON, CSV or Parquet with `text`, or a folder of such; may be given "
              "several times.  [default: what the config names]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(), required=True, metavar="MODEL.gguf", callback=named_path,
              help="The file to write. Log, loss curve and checkpoints are in MODEL.training beside it.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the run in MODEL.training, which was stopped.")
@click.option("--untrained", is_flag=True, help="Write the model with its first, random weights, and stop.")
@click.option("--validation", type=float, metavar="X", callback=checked_by(TrainConfig),
              help="Windows of text to validate with and not to learn from; below 1, their share of all.  "
              "[default: 0.05]")  # fmt: skip
@settings_options(TrainConfig, defaults=DEFAULTS)
@click.option("--tensorboard/--no-tensorboard", default=None,
              help="Write event files.  [default: where TensorBoard is installed]")  # fmt: skip
@threads_option
def command(
    config_file: Path | None,
    data: tuple[str, ...],
    output: Path,
    resume: bool,
    untrained: bool,
    tensorboard: bool | None,
    n_threads: int | None,
    **typed: Any,
) -> None:
    """Train a model from nothing: its shape, tokenizer and weights.

    \b
      edgellm train plan --hours 1 --data shakespeare.txt
      edgellm train new --config examples/shakespeare.yaml --data shakespeare.txt -o shakespeare.gguf
      edgellm run shakespeare.gguf --raw -p "ROMEO:"

    Ctrl-C saves a checkpoint, from which --resume goes on.
    """
    from edgellm.cli.train.training import refuse_own_settings
    from edgellm.files import refuse_target
    from edgellm.train.session import Session

    if untrained and resume:
        raise UsageError("--resume goes on with training, and --untrained does not train; leave one out")
    folder = output.with_name(f"{output.name.removesuffix('.gguf')}.training")
    if not untrained:
        refuse_own_settings(config_file, folder, resume)
        Session(folder, resume=resume).check()
    typed |= {"tensorboard": tensorboard, "threads": n_threads}
    config = _config(config_file, folder, resume, typed_settings({"data": data, **typed}))
    check_threads("threads", config.machine.threads)
    refuse_target(output, [config_file] if config_file else [])
    if untrained:
        _write_untrained(config, output, folder)
    else:
        _train(config, output, folder, resume)


def _config(config_file: Path | None, folder: Path, resume: bool, typed: dict[str, Any]) -> NewConfig:
    """The settings of the file that was named, or of the run that is gone on with, below those that were typed."""
    from edgellm.train.new.config import NewConfig
    from edgellm.train.session import SETTINGS

    if config_file is None and resume and (folder / SETTINGS).is_file():
        config_file = folder / SETTINGS
    if config_file is None and resume and "data" not in typed:
        raise UsageError(
            f"{folder / SETTINGS}, which says what the run is, is not there; give its --config and --data again",
            parameter="config",
        )
    return NewConfig.read(config_file, typed) if config_file else NewConfig.of(typed)


def _write_untrained(config: NewConfig, output: Path, folder: Path) -> None:
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note, size_text
    from edgellm.train.new.run import prepare
    from edgellm.train.session import Session

    Session(folder).check()  # else the weights of its run would be lost
    with Progress("a new model", quiet=True) as progress:
        prepared = prepare(config, output, progress)
        prepared.model.write(output)
    for line in prepared.about():
        note(line)
    note(f"wrote {output}, {size_text(output.stat().st_size)}, untrained")


def _train(config: NewConfig, output: Path, folder: Path, resume: bool) -> None:
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note, one_line, size_text
    from edgellm.cli.train.live import Live
    from edgellm.cli.train.outcome import outcome_lines
    from edgellm.train.new.run import train_new
    from edgellm.train.session import CURVE, LOG

    with Progress("a new model", quiet=True) as progress, Live() as live:

        def show(prepared: Prepared) -> None:
            for line in prepared.about():
                progress.note(line)

        try:
            summary = train_new(
                config, output, folder=folder, resume=resume, n_threads=config.machine.threads,
                tensorboard=config.machine.tensorboard, progress=progress, told=show, callback=live,
            )  # fmt: skip
        except KeyboardInterrupt:
            live.close()
            if live.step is not None:
                note(f"stopped at step {live.step.step}; `edgellm train new --resume -o {output}` goes on from there")
            raise
    size = size_text(output.stat().st_size)
    for name, line in [
        *outcome_lines(summary, live.step),
        ("wrote", f"{output}, {size}; {LOG} and {CURVE} in {folder}"),
    ]:
        click.echo(one_line(f"{name:<12}{line}"))
