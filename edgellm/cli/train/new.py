"""edgellm train new"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click


@click.command("new")
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="Shape, tokenizer and training as YAML: n_layers: 6, n_vocab: 1024, ...")  # fmt: skip
@click.option("--data", multiple=True, metavar="TEXT",
              help="The text: a plain text, JSONL, JSON, CSV or Parquet with `text`, or a folder of such; may stand "
              "several times.  [default: what the config names]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="MODEL.gguf",
              help="The file to write.")  # fmt: skip
@click.option("--untrained", is_flag=True, help="Write the model with its first, random weights, and stop.")
def command(config_file: Path, data: tuple[str, ...], output: Path, untrained: bool) -> None:
    """Train a model from nothing: its shape, tokenizer and weights.

    \b
      edgellm train new --config examples/shakespeare.yaml --data shakespeare.txt -o shakespeare.gguf
      edgellm run shakespeare.gguf --raw -p "ROMEO:"
    """
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note, size_text
    from edgellm.errors import UnsupportedError
    from edgellm.files import refuse_target
    from edgellm.train.new.config import NewConfig
    from edgellm.train.new.run import prepare

    config = NewConfig.read(config_file)
    if data:
        config = replace(config, data=data)
    refuse_target(output, [config_file])
    if not untrained:
        raise UnsupportedError("weights cannot be trained yet; --untrained writes the model as it begins")
    with Progress("a new model", quiet=True) as progress:
        prepared = prepare(config, output, progress)
        prepared.model.write(output)
    for line in [*prepared.about(), *prepared.notes]:
        note(line)
    note(f"wrote {output}, {size_text(output.stat().st_size)}")
