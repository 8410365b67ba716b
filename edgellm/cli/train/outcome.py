"""How a run of training ended, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgellm.cli.terminal import size_text
from edgellm.cli.train.live import duration

if TYPE_CHECKING:
    from edgellm.train.loop import Step
    from edgellm.train.session import Summary

MUCH = 0.5  # of the prompts of a run


def outcome_lines(
    summary: Summary, last: Step | None, held_out: Mapping[str, tuple[float, float]] | None = None
) -> Iterator[tuple[str, str]]:
    """What was trained, how well, how fast and at what cost, by name.

    held_out:  figures of held-out examples before and after, by name.
    """
    ends = {"early": ", stopped early", "asked": ", stopped"}.get(summary.stopped, "")
    epochs = f", {last.epoch:.3g} epochs" if last else ""
    yield "trained", f"{summary.step} of {summary.n_steps} steps{epochs}, in {duration(summary.seconds)}{ends}"
    if summary.loss is not None:
        yield "loss", f"{summary.loss:.4f}, mean of the last steps"
    if summary.validation_loss is not None:
        yield "validation", f"{summary.validation_loss:.4f} at best"
    for name, (before, after) in (held_out or {}).items():
        yield "held out", f"{name.replace('_', ' ')} {before:.3f} before, {after:.3f} after"
    if summary.weights_of != summary.step:
        yield "weights", f"those of step {summary.weights_of}, the best"
    seconds = f"{summary.n_tokens:,} tokens in {summary.train_seconds:.1f} s"
    yield "speed", f"{summary.tokens_per_second:.0f} tok/s, {seconds}"
    if summary.joules is None:
        yield "energy", "this machine does not tell"
    else:
        each = f", {1000 * summary.joules / summary.n_tokens:.1f} mJ a token" if summary.n_tokens else ""
        yield "energy", f"{summary.joules:.1f} J of the whole machine{each}"
    yield "memory", f"{size_text(summary.peak_memory)} at most"


def taught_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What the log of a run tells of rewards that taught little: in groups, only differences between them count."""
    name = "equal_groups"
    shares = [entry["figures"][name] for entry in entries if name in entry.get("figures", {})]
    equal = sum(shares) / len(shares) if shares else 0.0
    if equal == 1:
        yield "note", "all answers to a prompt had the same reward, every time, so nothing was learnt from rewards"
    elif equal > MUCH:
        yield "note", f"for {equal:.0%} of the prompts all answers had the same reward, which teaches nothing"
