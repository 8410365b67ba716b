"""edgellm train preview"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.train.data_options import data_options
from edgellm.train.data.config import DataConfig

if TYPE_CHECKING:
    from edgellm.text import Tokenizer
    from edgellm.train.data.dataset import Dataset, Summary
    from edgellm.train.data.encoder import Encoded
    from edgellm.train.documents import Documents

_MARKS = ("[[", "]]")


@click.command("preview")
@click.argument("model", required=False, shell_complete=complete_models)
@data_options
@click.option("-n", "--examples", "n_shown", type=click.IntRange(0), default=3, show_default=True, metavar="N",
              help="Show the first N examples.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with token ids.")
def command(config_file: Path | None, n_shown: int, as_json: bool, **typed: Any) -> None:
    """Show examples as a model would see them, and what it would learn of them.

    What is learnt is coloured, or stands between [[ and ]] where there are no colours. All of the data is read, so
    that every line is checked, and lengths and tokens are counted.

    \b
      edgellm train preview smollm2-135m --data facts.jsonl
      edgellm train preview --config train.yaml
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.train.options import EVERY_NAME, typed_settings
    from edgellm.cli.train.training import check_given
    from edgellm.train.data.dataset import read_dataset
    from edgellm.train.data.kinds import EVERY
    from edgellm.train.data.vocabulary import read_vocabulary
    from edgellm.train.settings import made, read_settings

    of_file = read_settings(config_file, [DataConfig], unread=EVERY_NAME) if config_file else {}
    settings = {**of_file, **typed_settings(typed)}
    check_given(settings)
    config = made(DataConfig, settings)
    vocabulary = read_vocabulary(models.path_of(settings["model"]), settings.get("template"))
    with Progress("reading", quiet=True) as progress:
        found = read_dataset(settings["data"], vocabulary, EVERY, config, lambda n: progress(n, 0, "examples"))
    if as_json:
        import json

        click.echo(json.dumps(_as_dict(found, n_shown)))
        return
    for line in summary_lines(found, config):
        click.echo(line)
    for n in range(min(n_shown, len(found))):
        click.echo()
        for text in _example(found, n, vocabulary.tokenizer):
            click.echo(text)


def summary_lines(data: Dataset, config: DataConfig) -> Iterator[str]:
    """What was found in the data, line by line."""
    from edgellm.cli.terminal import one_line

    for name, line in _summary(data.summary, config):
        yield one_line(f"{name:<12}{line}")


def _summary(summary: Summary, config: DataConfig) -> Iterator[tuple[str, str]]:
    """What was found in the data, line by line."""
    from statistics import median_low

    for file in summary.files:
        yield "data", f"{file.path}: {file}"
        if file.unused:
            yield "", f"keys that are not used: {', '.join(map(str, file.unused))}"
    if summary.n_bad:
        more = "; ..." if summary.n_bad > len(summary.problems) else ""
        yield "bad", f"{summary.n_bad:,} skipped: {'; '.join(summary.problems)}{more}"
    if summary.n_targets:
        share = 100 * summary.n_targets / summary.n_tokens
        yield "tokens", f"{summary.n_targets:,} of {summary.n_tokens:,} are trained ({share:.1f} %)"
    else:  # prompts, which have no answers yet
        yield "tokens", f"{summary.n_tokens:,}"
    lengths = summary.lengths
    yield "lengths", f"{min(lengths):,} to {max(lengths):,} tokens, median {median_low(lengths):,}"
    if summary.n_long:
        what = "cut" if config.long == "cut" else "left out"
        yield "too long", f"{summary.n_long:,} of more than {config.max_length:,} tokens (--max-length): {what}"
    if summary.n_untrained:
        yield "left out", f"{summary.n_untrained:,} without a token that is trained"
    if summary.n_same:
        where = " within --max-length" if summary.n_long else ""
        pairs = "pair" if summary.n_same == 1 else "pairs"
        yield "left out", f"{summary.n_same:,} {pairs} of two answers that are the same{where}: neither is better"
    if summary.n_good or summary.n_not_good:
        yield "judged", f"{summary.n_good:,} good, {summary.n_not_good:,} not good"
    for note, n in summary.notes.items():
        yield "note", f"{note} ({n:,} {'chat' if n == 1 else 'chats'})"


def _example(data: Dataset, n: int, tokenizer: Tokenizer) -> Iterator[str]:
    """One example: a heading, and its documents."""
    from edgellm.cli.terminal import one_line
    from edgellm.train.data.dataset import documents_of

    parts = documents_of(data.examples[n])
    counts = f"{sum(part.n_targets for part in parts):,} of {sum(map(len, parts)):,} tokens are trained"
    yield one_line(f"--- example {n + 1} of {len(data):,} ({data.places[n]}): {counts}")
    for name, part in zip(_names(data.examples[n]), parts, strict=True):
        for number, document in enumerate(part.apart()):
            heading = " ".join(filter(None, (name, f"document {number + 1}" if part.n_documents > 1 else "")))
            if heading:
                yield f"--- {heading}"
            yield _marked(document, tokenizer)


def _names(example: Encoded) -> tuple[str, ...]:
    """What the documents of an example are called."""
    from edgellm.train.data.encoder import Asked, Judged, Pair

    if isinstance(example, Pair):
        return "chosen", "rejected"
    if isinstance(example, Asked):
        return ("to be answered",)
    return ("good" if example.good else "not good",) if isinstance(example, Judged) else ("",)


def _marked(document: Documents, tokenizer: Tokenizer) -> str:
    """The text of a document, with what is trained set apart."""
    from edgellm.cli.terminal import harmless
    from edgellm.train.data.spelling import spelled

    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    pieces = []
    for text, is_trained in spelled(document, tokenizer):
        shown = harmless(text)
        if is_trained and coloured:  # line by line, for pagers
            shown = "\n".join(click.style(line, fg="green", bold=True) if line else "" for line in shown.split("\n"))
        elif is_trained:
            shown = shown.join(_MARKS)
        pieces.append(shown)
    return "".join(pieces)


def _as_dict(data: Dataset, n_shown: int) -> dict[str, Any]:
    from edgellm.train.data.dataset import documents_of

    summary = data.summary
    files = [
        {"path": str(file.path), "kind": file.name, "n_examples": file.n, "unused_keys": dict(file.unused)}
        for file in summary.files
    ]
    counted = {name: value for name, value in vars(summary).items() if name not in ("files", "lengths")}
    examples = [
        {
            "place": data.places[n],
            "documents": [
                {"name": name, "ids": document.ids.tolist(), "targets": document.targets.tolist()}
                for name, part in zip(_names(data.examples[n]), documents_of(data.examples[n]), strict=True)
                for document in part.apart()
            ],
        }
        for n in range(min(n_shown, len(data)))
    ]
    return {**counted, "n_examples": len(data), "files": files, "lengths": summary.lengths, "examples": examples}
