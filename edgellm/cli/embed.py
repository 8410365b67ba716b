"""edgellm embed"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import activations_option, as_runtime, checked_by, threads_option
from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.engine import Model

POOLINGS = ("none", "mean", "cls", "last")


@click.command("embed")
@click.argument("model", shell_complete=complete_models)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), metavar="FILE",
              help="Read texts from FILE, one on each line; - reads standard input.")  # fmt: skip
@click.option(
    "--task",
    metavar="NAME",
    help="What the vectors are for, which puts the model's own prompt before each text: query, document, ...",
)
@click.option("--prompt", metavar="TEXT", help="Put TEXT before each text.")
@click.option("--rank", "query", metavar="QUERY", help="Rank the texts by how well they answer QUERY, best first.")
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="How the states of a text's tokens become one vector; none gives all.  [default: the model's]",
)
@click.option("--no-normalize", is_flag=True, help="Leave vectors as long as they come.")
@click.option("--dimensions", type=click.IntRange(1), metavar="N", help="Keep the first N numbers of each vector.")
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the model's context.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with the text.")
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=int,
    metavar="N",
    callback=checked_by(RuntimeConfig),
    help="Most tokens of a text.  [default: the model's]",
)
@threads_option
@activations_option
@as_runtime
def command(
    model: str,
    texts: tuple[str, ...],
    file: Path | None,
    query: str | None,
    pooling: str | None,
    no_normalize: bool,
    as_json: bool,
    runtime: RuntimeConfig,
    **options: Any,
) -> None:
    """Turn texts into vectors, or rank them.

    Texts of like meaning have vectors that point in like directions. Each text gives a line of numbers, or of JSON:

    \b
      edgellm embed MODEL "How do vaccines work?" --task query
      edgellm embed MODEL -f passages.txt --task document --json > vectors.jsonl
      edgellm embed MODEL -f passages.txt --rank "How do vaccines work?"
    """
    from edgellm.cli import models

    found = _texts(texts, file)
    _refuse_what_ranking_ignores(query, pooling, no_normalize, options)
    with models.load(models.path_of(model), runtime) as loaded:
        if query is not None:
            _rank(loaded, query, found, options["truncate"], as_json)
            return
        options |= {"pooling": pooling, "normalize": not no_normalize}
        vectors = loaded.embed(found, **options)
        for text, vector in zip(found, vectors, strict=True):
            _print_vectors(text, vector, as_json)


def _texts(typed: tuple[str, ...], file: Path | None) -> list[str]:
    """The texts that were typed, or the lines of a file. Raises UsageError for both, and for none."""
    from edgellm.cli.texts import decoded, read_text
    from edgellm.errors import UsageError

    if typed and file is not None:
        raise UsageError("texts are given twice, behind MODEL and with -f; expected one of them")
    if typed:
        return list(typed)
    if file is None:
        raise UsageError("there is no text; expected some behind MODEL, or a file of them (-f, - is standard input)")
    text = decoded(sys.stdin.buffer.read(), Path("standard input")) if str(file) == "-" else read_text(file)
    lines = text.split("\n")
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines:
        raise UsageError(f"{'standard input' if str(file) == '-' else file} is empty; expected a text on each line")
    return lines


def _refuse_what_ranking_ignores(
    query: str | None, pooling: str | None, no_normalize: bool, options: dict[str, Any]
) -> None:
    """Raise UsageError for an option that says nothing of scores."""
    from edgellm.errors import UsageError

    given = {"--pooling": pooling, "--no-normalize": no_normalize or None, "--task": options["task"],
             "--prompt": options["prompt"], "--dimensions": options["dimensions"]}  # fmt: skip
    if query is not None and (names := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{names[0]} is about vectors, and --rank prints scores; leave one of the two out")


def _rank(model: Model, query: str, texts: list[str], truncate: bool, as_json: bool) -> None:
    """Scores and texts, best first; equal ones in their order."""
    scores = model.rank(query, texts, truncate=truncate)
    for place in sorted(range(len(texts)), key=lambda i: float(-scores[i])):
        if as_json:
            _print_json({"index": place, "score": float(scores[place]), "text": texts[place]})
        else:
            click.echo(f"{scores[place]:.4f}\t{texts[place]}")


def _print_vectors(text: str, vector: Any, as_json: bool) -> None:
    """A line of a text's vector, or one for each of its tokens; as many digits as a float32 has."""
    rows = vector if vector.ndim == 2 else vector[None]
    if as_json:
        numbers = [[float(f"{x:.9g}") for x in row] for row in rows]
        _print_json({"text": text, "embedding": numbers if vector.ndim == 2 else numbers[0]})
        return
    for row in rows:
        click.echo(" ".join(f"{x:.9g}" for x in row))


def _print_json(values: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(values, ensure_ascii=False))
