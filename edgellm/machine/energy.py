"""The energy that this machine has used, where it tells: on Linux, the counters of Intel and AMD processors.

Each package (a processor in its socket) has a zone with a counter of microjoules, which begins anew at a number that
the zone tells; the memory of a package may have a zone of its own below it. See the kernel's power/powercap.rst.
Most systems let only the administrator read the counters, and virtual machines have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.machine.text import text_of

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


class EnergyMeter:
    """Joules of all processors and their memory, whoever used them, since this was made.

    Ask at least once in an hour: a counter that went all the way round looks as if it had stood still.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = list(_counters(root))
        self._microjoules = 0

    def joules(self) -> float | None:
        """None where the machine does not tell, or has stopped telling."""
        if not self._counters:
            return None
        grown = [counter.growth() for counter in self._counters]
        if None in grown:
            self._counters = []
            return None
        self._microjoules += sum(filter(None, grown))
        return self._microjoules / 1e6


@dataclass
class _Counter:
    """A zone's counter, what it goes up to, and where it last stood."""

    file: Path
    most: int
    last: int

    def growth(self) -> int | None:
        """Microjoules since the last time; None when it cannot be read any more."""
        now = _number(self.file)
        if now is None:
            return None
        before, self.last = self.last, now
        return now - before if now >= before else now + self.most + 1 - before


def _counters(root: Path) -> Iterator[_Counter]:
    """Those of whole packages and of memory; other zones are parts of a package, or of all of the machine."""
    folder = root / "sys/class/powercap"
    try:
        zones = sorted(zone for zone in folder.iterdir() if _ZONE.fullmatch(zone.name))
    except OSError:
        return
    for zone in zones:
        name = text_of(zone / "name")
        if name.startswith("package") or name == "dram":
            now, most = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
            if now is not None and most:
                yield _Counter(zone / "energy_uj", most, now)


def _number(path: Path) -> int | None:
    text = text_of(path)
    return int(text) if text.isascii() and text.isdecimal() else None
