"""edgellm quantize"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import activations_option, as_runtime, threads_option
from edgellm.errors import UsageError
from edgellm.params import RuntimeConfig


class _WithTypes(click.Command):
    """Shows the recipes below the options, without importing them for anything else."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgellm.convert.recipes import RECIPES

        with formatter.section("Types"):
            formatter.write_dl([(recipe.name, recipe.about) for recipe in RECIPES.values()])


@click.command("quantize", cls=_WithTypes)
@click.argument("source", metavar="IN.gguf", shell_complete=complete_models)
@click.argument("target", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.option("--tensor-type", "overrides", multiple=True, metavar="PATTERN=TYPE",
              help="Another type for the tensors that PATTERN finds (a part of their name, a regular expression, or a "
              "shell pattern of all of it); may stand several times, and the first that fits counts.")  # fmt: skip
@click.option("--imatrix", "imatrix_file", type=click.Path(path_type=Path), metavar="FILE",
              help="An importance matrix, from `edgellm imatrix` or from llama.cpp.")  # fmt: skip
@click.option("--budget", "budget_text", metavar="SIZE|kl=LOSS",
              help="In place of TYPE: the types that lose least within a size (90MB), or are smallest within a mean KL "
              "divergence (kl=0.03). Measures how much each matrix matters, which takes a while.")  # fmt: skip
@click.option("--report", is_flag=True, help="Compare OUT.gguf with IN.gguf, and say what was lost.")
@click.option("-f", "--file", "text_file", metavar="TEXT",
              help="For --budget and --report: text like what the model is used for.  [default: an ordinary page]",
              )  # fmt: skip
@threads_option
@activations_option
@as_runtime
def command(
    source: str,
    target: Path,
    type_name: str | None,
    overrides: tuple[str, ...],
    imatrix_file: Path | None,
    budget_text: str | None,
    report: bool,
    text_file: str | None,
    runtime: RuntimeConfig,
) -> None:
    """Make a GGUF file smaller.

    IN.gguf, or a model by its name, should hold the original weights in F32, F16 or BF16 (from `edgellm convert`).
    The mixes (_S, _M, _L) mean what they mean in llama.cpp.

    \b
      edgellm quantize smollm2-f16.gguf smollm2.gguf Q4_K_M
      edgellm quantize in.gguf out.gguf Q4_K_M --imatrix in.imatrix
      edgellm quantize in.gguf out.gguf Q4_0 --tensor-type ffn_down=q6_k
      edgellm quantize in.gguf out.gguf --budget 90MB --report
    """
    from contextlib import ExitStack

    from edgellm.cli import models
    from edgellm.cli.terminal import note
    from edgellm.cli.texts import read_text
    from edgellm.convert.budgeted import Budget, check_budget
    from edgellm.convert.quantize import open_model, quantize_file
    from edgellm.convert.recipes import check_overrides, recipe_of
    from edgellm.convert.targets import check_target

    if (type_name is None) == (budget_text is None):
        raise UsageError("give either a TYPE, such as Q4_K_M, or a --budget")
    if budget_text and overrides:
        raise UsageError("--tensor-type goes with a TYPE; a --budget chooses every type itself")
    if not (budget_text or report):
        _refuse_what_only_measures(text_file, runtime)
    # What cannot work is refused before a model is fetched, and then before one is loaded.
    budget = Budget.parse(budget_text) if budget_text else None
    if type_name:
        recipe_of(type_name)
    check_overrides(overrides)
    check_target(target)
    importance = _importance(imatrix_file)
    text = read_text(Path(text_file)) if text_file else None
    path = models.path_of(source)
    open_model(path, target).close()
    if budget:
        check_budget(path, target, budget, importance)
    with ExitStack() as opened:
        original = None
        if budget or report:
            from edgellm.cli.budget import divergence_of, open_original, quantize_within_budget, show_report

            original = opened.enter_context(open_original(path, text, runtime))
            if budget:
                done = quantize_within_budget(original, target, budget, importance, runtime.n_threads).quantized
        if type_name:
            from edgellm.cli.progress import Progress, reading

            with Progress() as progress:
                done = quantize_file(path, target, type_name, overrides=overrides, importance=importance,
                                     n_threads=runtime.n_threads, progress=reading(progress, path))  # fmt: skip
        for line in (*done.notes, *done.warnings):
            note(line)
        note(_summary(done))
        if original and report:
            show_report(divergence_of(original, target))


def _refuse_what_only_measures(text_file: str | None, runtime: RuntimeConfig) -> None:
    """Raise UsageError for an option that would be ignored, as nothing is compared."""
    options = {"-f/--file": text_file is not None, "--activations": runtime.activations != RuntimeConfig.activations}
    for name in (name for name, is_given in options.items() if is_given):
        raise UsageError(f"{name} is for --budget and --report, and neither was given; leave it out, or add --report")


def _importance(path: Path | None) -> Any:
    if path is None:
        return None
    from edgellm.formats.imatrix import read_imatrix

    return read_imatrix(path).tensors


def _summary(done: Any) -> str:
    from edgellm.cli.terminal import size_text

    share = 100 * done.n_bytes / done.n_bytes_before
    bits = f"{done.bits_per_weight:.2f} bits per weight"
    return f"wrote {done.path}, {done.type_name}, {size_text(done.n_bytes)} ({share:.0f} %), {bits}"
