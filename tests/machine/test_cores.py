"""How many fast cores there are, as systems of different makers tell it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.machine import cores

CPU = "sys/devices/system/cpu"


@pytest.fixture
def system(tmp_path: Path) -> Callable[[dict[str, object]], Path]:
    def build(files: dict[str, object]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return build


def each(name: str, values: list) -> dict[str, object]:
    """One file for every CPU."""
    return {f"{CPU}/cpu{cpu}/{name}": value for cpu, value in enumerate(values)}


SIBLINGS = "topology/thread_siblings_list"
PAIRED = each(SIBLINGS, ["0,4", "1,5", "2,6", "3,7"] * 2)  # four cores, two threads each
NEIGHBOURS = each(SIBLINGS, ["0-1", "0-1", "2-3", "2-3"])


@pytest.mark.parametrize(
    ("files", "cpus", "n"),
    [
        ({}, range(6), 6),  # nothing is told: every CPU is a core
        (PAIRED, range(8), 4),
        (PAIRED, [0, 4], 1),  # pinned to both threads of one core
        (PAIRED, [0, 1, 4], 2),
        (NEIGHBOURS, range(4), 2),
    ],
)
def test_threads_of_a_core_are_counted_once(system, files: dict[str, object], cpus, n: int) -> None:
    assert cores.linux_cores(set(cpus), system(files)) == n


HYBRID = {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7",
          **each(SIBLINGS, ["0-1", "0-1", "2-3", "2-3", 4, 5, 6, 7])}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "cpus", "n"),
    [
        (HYBRID, range(8), 2),
        (HYBRID, range(2, 8), 1),
        (HYBRID, range(4, 8), 4),  # where there is none that is faster, none is slow
        (each("cpu_capacity", [430] * 4 + [1024] * 2), range(6), 2),
        (each("cpu_capacity", [250] * 3 + [870] * 4 + [1024]), range(8), 5),  # three kinds: one best, four good
        (each("cpu_capacity", [1024] * 4), range(4), 4),
        (each("cpufreq/cpuinfo_max_freq", [3300000] * 2 + [1800000] * 4), range(6), 2),
        (each("cpufreq/cpuinfo_max_freq", [5700000] * 2 + [5500000] * 6), range(8), 8),  # favoured cores
        (each("cpu_capacity", ["", 1024]) | each("cpufreq/cpuinfo_max_freq", ["x", 1]), range(2), 2),
    ],
)
def test_slow_cores_are_left_out(system, files: dict[str, object], cpus, n: int) -> None:
    assert cores.linux_cores(set(cpus), system(files)) == n


@pytest.mark.parametrize(("told", "n"), [({"hw.perflevel0.physicalcpu": 4, "hw.physicalcpu": 8}, 4), ({}, None)])
def test_macs(told: dict[str, int], n: int | None) -> None:
    assert cores.apple_cores(told.get) == n


def record(efficiency: int, n_groups: int = 1) -> bytes:
    """As GetLogicalProcessorInformationEx gives it for a core."""
    groups = struct.pack("<Q8x", 3) * n_groups
    body = struct.pack("<BB20xH", 1, efficiency, n_groups) + groups
    return struct.pack("<II", 0, len(body) + 8) + body


@pytest.mark.parametrize(
    ("records", "n"),
    [
        ([record(0)] * 6, 6),
        ([record(1)] * 4 + [record(0)] * 8, 4),
        ([record(0), record(2, n_groups=3), record(1), record(2)], 2),
        ([], None),
        ([b"\0\0\0"], None),
        ([record(1), bytes(8) + b"\0\1"], 2),  # no length: it must not be waited for
    ],
)
def test_windows(records: list[bytes], n: int | None) -> None:
    assert cores.windows_cores(b"".join(records)) == n


def test_this_machine_has_a_core() -> None:
    assert cores.fast_cores(Path("/")) >= 1
