"""Renaming a file over another one, also where the system refuses that while somebody has it open."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

WINDOWS = sys.platform == "win32"  # where a file that somebody has open or mapped keeps its name
_PAUSES = (0.1, 0.2, 0.4, 0.8)  # seconds; virus scanners look at new files that long


def rename(source: Path, target: Path) -> None:
    """Rename a file, over another if there is one.

    Windows refuses while somebody has either open or mapped: that is waited for a moment, and then a PermissionError
    says so.
    """
    for pause in _PAUSES if WINDOWS else ():
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(pause)
    try:
        os.replace(source, target)
    except PermissionError:
        if not WINDOWS or not target.exists():
            raise
        why = "another program, such as a running edgellm, has it open; end that and try again"
        raise PermissionError(errno.EACCES, why, str(target)) from None


def is_in_use(target: Path) -> bool:
    """Whether Windows refuses to rename a file: one to its own name as well, and nothing else comes of that."""
    try:
        os.rename(target, target)
    except PermissionError:
        return True
    return False
