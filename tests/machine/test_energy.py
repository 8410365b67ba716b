"""Energy counters, on trees of files as the kernel shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from edgellm import machine
from edgellm.machine.energy import EnergyMeter

MOST = 262_143_328_850


@pytest.fixture
def system(tmp_path: Path):
    """A root with these zones, and a function that sets a counter."""

    def build(zones: Mapping[str, tuple[str, str]], most: str = str(MOST)):
        for zone, (name, counter) in zones.items():
            folder = tmp_path / "sys/class/powercap" / zone
            folder.mkdir(parents=True)
            (folder / "name").write_text(name + "\n")
            (folder / "energy_uj").write_text(counter + "\n")
            (folder / "max_energy_range_uj").write_text(most + "\n")

        def put(zone: str, counter: str) -> None:
            (tmp_path / "sys/class/powercap" / zone / "energy_uj").write_text(counter + "\n")

        return tmp_path, put

    return build


def test_packages_and_memory_are_added_and_their_parts_are_not(system) -> None:
    zones = {
        "intel-rapl:0": ("package-0", "1000000"), "intel-rapl:0:0": ("core", "10"), "intel-rapl:0:1": ("dram", "500"),
        "intel-rapl:1": ("package-1", "7"), "intel-rapl:2": ("psys", "1"), "intel-rapl-mmio:0": ("package-0", "1"),
    }  # fmt: skip
    root, put = system(zones)
    meter = EnergyMeter(root)
    assert meter.joules() == 0
    for zone, counter in (("intel-rapl:0", "3500000"), ("intel-rapl:0:1", "1000500"), ("intel-rapl:1", "250007")):
        put(zone, counter)
    for zone in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        put(zone, "9000000")
    assert meter.joules() == pytest.approx(2.5 + 1.0 + 0.25)
    assert meter.joules() == pytest.approx(3.75)


def test_a_counter_goes_round(system) -> None:
    root, put = system({"intel-rapl:0": ("package-0", str(MOST - 999_999))})
    meter = EnergyMeter(root)
    put("intel-rapl:0", "2000000")
    assert meter.joules() == pytest.approx(3.0)
    put("intel-rapl:0", "1000000")  # all the way, but for one joule
    assert meter.joules() == pytest.approx(3.0 + MOST / 1e6 - 1.0, abs=1e-3)


@pytest.mark.parametrize("counter", ["", "abc", "-5", "1.5"])
def test_what_is_not_told_is_none(system, counter: str) -> None:
    root, put = system({"intel-rapl:0": ("package-0", counter)})
    meter = EnergyMeter(root)
    put("intel-rapl:0", "5000000")
    assert meter.joules() is None


def test_without_a_range_it_is_not_told(system) -> None:
    root, _ = system({"intel-rapl:0": ("package-0", "5")}, most="0")
    assert EnergyMeter(root).joules() is None


def test_a_counter_that_goes_away(system) -> None:
    root, put = system({"intel-rapl:0": ("package-0", "5"), "intel-rapl:1": ("package-1", "5")})
    meter = EnergyMeter(root)
    (root / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert meter.joules() is None
    put("intel-rapl:1", "9")
    assert meter.joules() is None  # a sum that lacks a part is none


def test_other_systems_tell_nothing(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None


def test_this_machine_tells_or_does_not() -> None:
    meter = EnergyMeter()
    found = meter.joules()
    assert found is None or found >= 0


def test_the_most_memory_so_far(tmp_path: Path) -> None:
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t   123 kB\nVmRSS:\t 100 kB\n")
    assert machine.peak_memory(tmp_path) == 123 * 1024
    here = psutil.Process().memory_info().rss
    assert machine.peak_memory() > 10_000_000 and machine.peak_memory(tmp_path / "none") > here / 2
