"""Whether other programs keep the machine busy."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from edgellm.machine import others

SPIN = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_the_work_of_others_is_told_from_ones_own() -> None:
    work = others.OtherWork()
    spin(0.6)
    alone = work.cores()
    programs = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(others.n_cores())]
    try:
        time.sleep(0.3)
        work.cores()
        spin(1.0)
        beside = work.cores()
    finally:
        for program in programs:
            program.kill()
            program.wait()
    # Whatever else this machine does, it has little left for them, and one core at most is our own.
    assert beside >= 0.4 * others.n_cores()
    assert alone <= others.n_cores() and others.is_too_busy(beside, others.n_cores())


@pytest.mark.parametrize(
    ("cores", "n_threads", "busy", "too_busy"),
    [(2, 2, 0.1, False), (2, 2, 0.4, True), (8, 4, 1.5, False), (8, 4, 2.5, True), (64, 60, 4.5, True),
     (64, 32, 15.0, False), (1, 1, 0.2, False)],
)  # fmt: skip
def test_what_is_too_busy(
    monkeypatch: pytest.MonkeyPatch, cores: int, n_threads: int, busy: float, too_busy: bool
) -> None:
    monkeypatch.setattr(others, "n_cores", lambda: cores)
    assert others.is_too_busy(busy, n_threads) is too_busy
