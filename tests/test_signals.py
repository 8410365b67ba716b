"""Tests that send signals hold however the run was started: by hand, under `nohup`, in the background of a script."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHILD = "import signal, sys; sys.exit(any(signal.getsignal(s) is signal.SIG_IGN for s in (1, 2, 15)))"
RUN = f"""
import os, signal, subprocess, sys
import tests.conftest
os.kill(os.getpid(), signal.SIGHUP)  # the run goes on
sys.exit(subprocess.call([sys.executable, "-c", {CHILD!r}]))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def test_children_of_a_run_that_ignores_signals_do_not() -> None:
    command = ["sh", "-c", "trap '' INT HUP TERM; exec \"$@\"", "sh", sys.executable]
    assert subprocess.run([*command, "-c", CHILD], timeout=60).returncode == 1
    assert subprocess.run([*command, "-c", RUN], cwd=ROOT, timeout=60).returncode == 0


def test_children_of_this_run_do_not() -> None:
    assert subprocess.run([sys.executable, "-c", CHILD], timeout=60).returncode == 0
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
