"""edgellm train full"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import checked_by
from edgellm.cli.train.full_output import FullOutput
from edgellm.cli.train.training import Training, training_options
from edgellm.train.config import FullConfig

if TYPE_CHECKING:
    from edgellm.formats.adapters import Adapter

OUTPUT = ("MODEL.gguf", "The file to write. Log, loss curve and checkpoints are in MODEL.training beside it.")


@click.command("full")
@training_options("full", FullOutput, weights=FullConfig, usual={"learning_rate": 2e-5}, output=OUTPUT)
@click.option("--type", "type", metavar="T", callback=checked_by(FullOutput),
              help="Of the model that is written, as of `edgellm quantize`: F16, "
              "Q8_0, Q4_K_M, ...  [default: every tensor as it was]")  # fmt: skip
def command(training: Training) -> None:
    """Train all weights of a model, for one that fits into memory: 16 bytes for every weight.

    \b
      edgellm train full smollm2-135m --data facts.jsonl -o smollm2-facts.gguf

    Log, loss curve and checkpoints are in a folder beside the file (smollm2-facts.training). Ctrl-C saves a checkpoint,
    from which --resume goes on.
    """
    from edgellm.files import refuse_target

    training.target = target = training.output
    refuse_target(target)
    training.output = target.with_name(f"{target.name.removesuffix('.gguf')}.training")
    training.go(finish=lambda model, adapter, settings: _written(Path(model), adapter, target, settings.get("type")))


def _written(model: Path, adapter: Adapter, target: Path, type_name: str | None) -> Iterator[tuple[str, str]]:
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import size_text
    from edgellm.convert.merge import merge_adapters

    with Progress(str(target)) as progress:
        done = merge_adapters(model, adapter, target, type_name, progress=progress)
    for line in (*done.notes, *done.warnings):
        yield "note", line
    yield "wrote", f"{target}, {size_text(target.stat().st_size)}"
