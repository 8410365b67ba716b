"""What other programs do with the machine while something is measured."""

from __future__ import annotations

import os
import time

import psutil

_SPARE = 0.25  # of a core: clocks tick every hundredth of a second, and a system is never quite idle
_SHARE = 0.25  # of all cores: they use the same memory


class OtherWork:
    """How busy other programs kept the machine since this was made. For one thread."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # which counts from here on
        self._started, self._own = time.perf_counter(), time.process_time()

    def cores(self) -> float:
        """Cores, on average, that were busy with other programs since this was made, or asked last."""
        now, own = time.perf_counter(), time.process_time()
        busy = psutil.cpu_percent() / 100 * n_cores()
        mine = (own - self._own) / max(now - self._started, 1e-9)
        self._started, self._own = now, own
        return max(0.0, busy - mine)


def is_too_busy(cores: float, n_threads: int) -> bool:
    """Whether so many cores that others kept busy take something from so many threads."""
    return cores > _SHARE * n_cores() or n_cores() - cores < n_threads - _SPARE


def n_cores() -> int:
    """Of the machine, whatever this process may have of them."""
    return psutil.cpu_count() or 1


def load() -> float | None:
    """Programs that ran or wanted to, on average over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
