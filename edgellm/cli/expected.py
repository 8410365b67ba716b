"""edgellm run MODEL --estimate: what a model will take, and how fast it will be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm import hub
from edgellm.cli.progress import Progress
from edgellm.cli.terminal import counted, size_text
from edgellm.machine import available_memory, total_memory
from edgellm.machine.others import load, n_cores
from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.measure.estimate import Estimate


def lines_for(named: str, path: Path | None, runtime: RuntimeConfig) -> Iterator[str]:
    """Of a model that is here, measured; of one that must be fetched, what the catalogue says of it."""
    if path is None:
        yield from _of_the_catalogue(hub.find(named))
        return
    from edgellm.measure.estimate import estimate

    with Progress("measuring") as progress:
        found = estimate(path, runtime, progress)
    yield from lines_of(found)


def lines_of(found: Estimate) -> Iterator[str]:
    threads = counted(found.n_threads, "thread")
    full = found.memory(found.n_ctx)
    states = f", and {size_text(found.state_bytes)} for every {found.step_tokens}" if found.state_bytes else ""
    yield f"model    {found.model}, {threads}, {found.isa}"
    yield (
        f"memory   {size_text(found.memory(0))}: weights {size_text(found.weight_bytes)}, program and buffers "
        f"{size_text(found.other_bytes)}; {size_text(full)} with a full context of {found.n_ctx} tokens "
        f"({size_text(found.token_bytes)} each{states})"
    )
    yield f"machine  {verdict(full)}"
    yield (
        f"speed    prompt {found.prefill_tokens_per_second:.0f} tokens/s ({found.n_prompt} tokens), "
        f"answer {found.decode_tokens_per_second:.1f} tokens/s"
    )
    if found.busy_cores is not None:
        yield f"busy     {busy_line(found.busy_cores)}"


def busy_line(cores: float) -> str:
    """What to say of speeds that were measured while other programs kept cores busy."""
    average = "" if (jobs := load()) is None else f" (load {jobs:.1f})"
    return (
        f"other programs kept {cores:.1f} of {n_cores()} cores busy meanwhile{average}: these speeds are too low; "
        "measure again when they have ended"
    )


def verdict(n_bytes: int) -> str:
    """Whether the machine has so much memory."""
    free, total = available_memory(), total_memory()
    if n_bytes <= free:
        return f"it fits: {size_text(free)} are free now"
    if n_bytes <= total:
        return f"more than the {size_text(free)} that are free now, less than the {size_text(total)} that there are"
    return f"too large: this process may have {size_text(total)}; a shorter context (-c) or a smaller model needs less"


def _of_the_catalogue(model: hub.NamedModel) -> Iterator[str]:
    yield f"model    {model.name}, which is not here yet: edgellm pull {model.name} fetches it"
    if not model.n_bytes:
        yield "memory   not known before it is fetched"
        return
    yield f"memory   about {size_text(model.memory)} with a full context; {verdict(model.memory)}"
    from edgellm.graph.team import KERNELS, Team
    from edgellm.kernels.isa import choose
    from edgellm.kernels.store import KernelStore
    from edgellm.machine import default_threads
    from edgellm.measure.limits import measure_limits

    store = KernelStore(choose())
    with Progress("measuring") as progress:
        store.load(KERNELS, progress)
        team = Team(store, default_threads(), max_ops=1)
        try:
            read_bytes = measure_limits(store, team).read_bytes
        finally:
            team.close()
    yield (
        f"speed    answer at most {read_bytes / model.n_bytes:.1f} tokens/s, usually two thirds of that: memory is "
        f"read with {read_bytes / 1e9:.1f} GB/s, all {size_text(model.n_bytes)} for each token"
    )
