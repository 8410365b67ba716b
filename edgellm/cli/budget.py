"""What `edgellm quantize` measures with a model: a budget, a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli import models
from edgellm.cli.progress import Progress, reading
from edgellm.cli.terminal import note, one_line, size_text
from edgellm.cli.texts import shown
from edgellm.convert.budgeted import Budget, quantize_within
from edgellm.convert.measured import Original

if TYPE_CHECKING:
    from edgellm.convert.budget import Plan
    from edgellm.convert.budgeted import WithinBudget
    from edgellm.evaluate import Divergence
    from edgellm.params import RuntimeConfig

# What a mean divergence means in words, as people know it from the types of files.
_JUDGEMENTS = (
    (0.004, "no loss that anyone would notice"),
    (0.012, "hardly any loss"),
    (0.06, "little loss: fine for most uses"),
    (0.15, "noticeable loss"),
    (0.5, "much loss: it will often say something else"),
)
_WORST = "heavy loss: hardly the same model"


def open_original(path: Path, text: str | None, runtime: RuntimeConfig) -> Original:
    """The original model and a text, loaded under a progress line."""
    return Original(path, text, runtime, load=models.load)


def divergence_of(original: Original, path: Path) -> Divergence:
    """How far another file is from the original, under a progress line."""
    with Progress("comparing") as progress:
        return original.divergence_of(path, shown(progress, digits=5))


def quantize_within_budget(
    original: Original, target: Path, budget: Budget, importance: Any, n_threads: int | None
) -> WithinBudget:
    """Choose, write, and show what was chosen."""
    sensitivity = original.sensitivity()
    note(f"measuring each matrix on {sensitivity.n_scored} tokens")
    with Progress("measuring") as measuring, Progress() as writing:
        done = quantize_within(
            original.path,
            target,
            budget,
            sensitivity.of,
            lambda path: divergence_of(original, path).mean,
            importance=importance,
            n_threads=n_threads,
            measuring=measuring,
            writing=reading(writing, original.path),
        )
    _show(done.plan)
    click.echo(f"measured: {size_text(done.quantized.n_bytes)}, a loss of {done.loss:.4f}")
    return done


def _show(plan: Plan) -> None:
    """The table of what was chosen and why: the costliest matrices first to see."""
    click.echo(f"{'matrix':26}{'shape':>16}  {'type':8}{'size':>10}{'loss':>10}{'share':>8}   one type less / more")
    for choice in plan.choices:
        part, option = choice.part, choice.option
        shape = "x".join(str(dim) for dim in part.tensor.shape)
        others = " / ".join(
            f"{other.format} {other.loss:.5f}" if other else "-" for other in (choice.smaller, choice.larger)
        )
        share = 100 * option.loss / plan.loss if plan.loss else 0
        click.echo(
            one_line(
                f"{part.name.removesuffix('.weight'):26}{shape:>16}  {option.format!s:8}"
                f"{size_text(option.n_bytes):>10}{option.loss:10.5f}{share:6.1f} %   {others}"
            )
        )
    click.echo(f"expected: {size_text(plan.n_bytes)}, a loss of {plan.loss:.4f}")


def show_report(found: Divergence) -> None:
    """Loss in figures, and in a line of words."""
    click.echo(
        f"KL divergence   {found.mean:.5f} ± {found.mean_error:.5f} mean, {found.percentile_99:.4f} 99th percentile"
    )
    click.echo(f"same top token  {100 * found.same_top:.1f} ± {100 * found.same_top_error:.1f} %")
    click.echo(f"perplexity      {found.perplexity:.3f}, of the original {found.base_perplexity:.3f}")
    click.echo(judgement(found.mean))


def judgement(mean_divergence: float) -> str:
    """A mean divergence in words."""
    return next((words for most, words in _JUDGEMENTS if mean_divergence <= most), _WORST)
