"""What `edgellm doctor` finds, and how it says it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from edgellm import files, hub
from edgellm.cli.expected import busy_line
from edgellm.cli.machine import cpu_name
from edgellm.cli.progress import Progress
from edgellm.cli.terminal import counted, size_text
from edgellm.files import private
from edgellm.graph import Tuning
from edgellm.graph.team import KERNELS, Team
from edgellm.graph.tuner import measure_and_remember, remembered
from edgellm.graph.weights import Kind
from edgellm.hub.catalog import CHAT, NamedModel
from edgellm.kernels import isa
from edgellm.kernels.store import KernelStore
from edgellm.machine import available_memory, total_memory, usable_threads
from edgellm.machine.others import OtherWork, is_too_busy
from edgellm.measure.limits import Limits, measure_limits
from edgellm.measure.reach import Reach, measure_reach
from edgellm.quants import FORMATS

TYPES = ("Q4_K", "Q8_0")
_ROOM = 6_000_000_000  # bytes: a model of 7 to 8 B and what it needs while it comes
_SPARE = 0.8  # of the machine's memory, for a model: the rest is for the system and other programs
_READABLE = 6.0  # tokens a second: about as fast as people read
_ROOMY = 0.4  # of the memory: a model that takes so little leaves room for a better type
_FEW_OLD = 2  # folders of kernels for other instruction sets or versions that are nothing to speak of
_SLOW_REACH = 0.5  # of the read limit
_TRIES = 3  # at measuring, while other programs keep the machine busy


@dataclass(frozen=True)
class Advice:
    """A model for this machine, the type to take of it, and tokens a second that may be expected, about."""

    model: str
    type: str
    tokens_per_second: float


@dataclass(frozen=True)
class Checkup:
    """What the machine gives, in bytes and bytes a second; what is wrong, a line each; and what to choose.

    busy_cores:  that other programs used while the speeds were measured, so that they are too low; None when it was
                 calm enough.
    """

    processor: str
    instructions: str
    physical_cores: int | None
    logical_cores: int
    n_threads: int
    memory: int
    memory_free: int
    disk_free: int
    models_folder: str
    limits: Limits
    one_thread: Limits
    reaches: list[Reach]
    busy_cores: float | None
    faults: list[str]
    advice: list[Advice]


def checkup() -> Checkup:
    """Look, and measure for a few seconds."""
    found, store, weights = isa.choose(), KernelStore(isa.choose()), Kind(FORMATS[TYPES[0]])
    with Progress("measuring") as progress:
        tuning = remembered(store, weights) or measure_and_remember(store, weights, progress=progress)
        store.load(KERNELS, progress)
        speeds, busy_cores = _speeds(store, tuning)
    faults = [*_of_the_machine(), *_of_files(), *_of_kernels(store)]
    if busy_cores is None:  # else it may be for that that kernels are slow
        faults += _of_speed(speeds.limits, speeds.reaches)
    return Checkup(
        processor=cpu_name(),
        instructions=found.name,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        n_threads=tuning.n_threads,
        memory=total_memory(),
        memory_free=available_memory(),
        disk_free=_disk_free(),
        models_folder=str(files.models_folder()),
        limits=speeds.limits,
        one_thread=speeds.one_thread,
        reaches=speeds.reaches,
        busy_cores=busy_cores,
        faults=faults,
        advice=advise(total_memory(), speeds.reaches[0].read_bytes),
    )


def as_dict(found: Checkup) -> dict[str, Any]:
    return asdict(found)


def lines(found: Checkup) -> Iterator[str]:
    """For people."""
    cores = f"{found.physical_cores or 'unknown'} physical, {found.logical_cores} logical"
    threads = counted(found.n_threads, "thread")
    yield f"processor     {found.processor}, {found.instructions}; cores: {cores}; {threads} in use"
    yield f"memory        {size_text(found.memory)}, {size_text(found.memory_free)} free now"
    yield f"disk          {size_text(found.disk_free)} free for models in {found.models_folder}"
    yield (
        f"memory speed  reads {found.limits.read_bytes / 1e9:.1f} GB/s with {threads}, "
        f"{found.one_thread.read_bytes / 1e9:.1f} GB/s with one"
    )
    yield f"arithmetic    multiplies {found.limits.macs / 1e9:.0f} GMAC/s (int8)"
    for reach in found.reaches:
        yield (
            f"kernels       {reach.type}, {reach.layout}: writing reads {reach.read_bytes / 1e9:.1f} GB/s "
            f"({100 * reach.read_bytes / found.limits.read_bytes:.0f} % of that), "
            f"reading a prompt makes {reach.macs / 1e9:.0f} GMAC/s ({100 * reach.macs / found.limits.macs:.0f} %)"
        )
    if found.busy_cores is not None:
        yield f"busy          {busy_line(found.busy_cores)}"
    yield ""
    yield from (f"wrong         {fault}" for fault in found.faults)
    if not found.faults:
        yield "nothing is wrong" if found.busy_cores is None else "nothing else is wrong"
    yield ""
    for number, advice in enumerate(found.advice):
        what = "choose" if number == 0 else "or"
        model = hub.catalog()[advice.model]
        yield (
            f"{what:12}  {advice.model} in {advice.type}: about {advice.tokens_per_second:.0f} tokens/s, takes about "
            f"{size_text(model.memory)}. {model.description}"
        )
    if not found.advice:
        yield "choose        a larger machine: this one has too little memory for any model of the catalogue"


def advise(memory: int, read_bytes: float) -> list[Advice]:
    """The largest chat model that fits and writes as fast as people read, and the quickest of those that follow it.

    memory:      bytes that the machine has. read_bytes: of weights, that the kernels read in a second.
    """

    def expected(model: NamedModel) -> Advice:
        roomy = model.memory <= _ROOMY * memory and read_bytes / (2 * model.n_bytes) >= _READABLE
        return Advice(model.name, "Q8_0" if roomy else "Q4_K_M", read_bytes / model.n_bytes / (2 if roomy else 1))

    fitting = [model for model in hub.catalog().values() if model.kind == CHAT and model.memory <= _SPARE * memory]
    ordered = sorted(fitting, key=lambda model: -model.n_bytes)
    quick = [model for model in ordered if read_bytes / model.n_bytes >= _READABLE]
    chosen = (quick or ordered[-1:])[:1]
    if quick and len(quick) > 1:
        chosen.append(quick[len(quick) // 2])
    return [expected(model) for model in chosen]


@dataclass(frozen=True)
class _Speeds:
    limits: Limits
    one_thread: Limits
    reaches: list[Reach]

    def or_better(self, other: _Speeds) -> _Speeds:
        reaches = [mine.or_better(its) for mine, its in zip(self.reaches, other.reaches, strict=True)]
        return _Speeds(self.limits.or_better(other.limits), self.one_thread.or_better(other.one_thread), reaches)


def _speeds(store: KernelStore, tuning: Tuning) -> tuple[_Speeds, float | None]:
    """The best of some tries while the machine is busy, and the cores that others used in the calmest of them."""
    best, least = None, float("inf")
    tunings = {name: remembered(store, Kind(FORMATS[name])) or tuning for name in TYPES}
    for _ in range(_TRIES):
        others = OtherWork()
        limits, one = (_limits(store, n) for n in (tuning.n_threads, 1))
        found = _Speeds(limits, one, [measure_reach(store, tunings[name], name) for name in TYPES])
        best, least = found if best is None else best.or_better(found), min(least, others.cores())
        if not is_too_busy(least, tuning.n_threads):
            return best, None
    assert best is not None
    return best, least


def _limits(store: KernelStore, n_threads: int) -> Limits:
    team = Team(store, n_threads, max_ops=1)
    try:
        return measure_limits(store, team)
    finally:
        team.close()


def _of_the_machine() -> Iterator[str]:
    cores, usable = psutil.cpu_count() or 1, usable_threads()
    if usable < cores:
        yield f"this process may keep {usable} of {cores} logical cores busy: a container's limit, or it is pinned"
    machine = psutil.virtual_memory().total
    if total_memory() < machine:
        limit = f"{size_text(total_memory())} of the machine's {size_text(machine)}"
        yield f"this process may have {limit}: a container's limit"
    if available_memory() < 0.2 * total_memory():
        free = f"{size_text(available_memory())} of {size_text(total_memory())}"
        yield f"only {free} of memory are free: close other programs"
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file() and governor.read_text(encoding="ascii").strip() == "powersave":
        driver = governor.with_name("scaling_driver")
        if not (driver.is_file() and driver.read_text(encoding="ascii").strip() in ("intel_pstate", "amd-pstate-epp")):
            yield "the cores are kept slow (scaling_governor is powersave); `cpupower frequency-set -g performance`"


def _of_speed(limits: Limits, reaches: list[Reach]) -> Iterator[str]:
    for reach in reaches:
        if reach.read_bytes < _SLOW_REACH * limits.read_bytes:
            share = f"{100 * reach.read_bytes / limits.read_bytes:.0f} % of what memory gives"
            yield (
                f"the kernels of {reach.type} reach {share} in the layout {reach.layout}: measure anew which settings "
                "are quickest with edgellm bench MODEL --tune"
            )


def _of_files() -> Iterator[str]:
    if (free := _disk_free()) < _ROOM:
        yield f"the disk of {files.models_folder()} has {size_text(free)} free, too little for a model of 7 B"
    with Progress(quiet=True) as progress:
        for model in hub.present(progress):
            if model.state == "incomplete":
                command = "convert" if model.is_checkpoint else "pull"
                yield f"{model.name} is half fetched: {model.fault}; edgellm {command} goes on, edgellm rm deletes it"
            elif model.state == "damaged":
                yield f"{model.name} is damaged: {model.fault}"


def _of_kernels(store: KernelStore) -> Iterator[str]:
    folder = files.kernels_folder()
    with_objects = [path for path in folder.glob("*") if path.is_dir() and path != store.folder]
    if len(with_objects) > _FEW_OLD:
        held = sum(file.stat().st_size for path in with_objects for file in path.rglob("*") if file.is_file())
        yield (
            f"{folder} holds {len(with_objects)} folders of kernels of other versions or processors, "
            f"{size_text(held)}; they go when nobody has used them for 90 days, or delete them"
        )
    try:
        if store.folder.exists():
            private.check(store.folder)
    except OSError as problem:
        yield f"compiled kernels cannot be kept, so each start compiles them: {problem.strerror or problem}"


def _disk_free() -> int:
    folder = files.models_folder()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
