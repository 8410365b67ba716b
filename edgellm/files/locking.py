"""A lock on an open file or folder, which ends with the process that holds it."""

from __future__ import annotations

import sys

if sys.platform == "win32":  # where nobody else can write an open file anyway

    def try_lock(handle: int, or_else: bool = True) -> bool:
        return or_else

else:
    import fcntl

    def try_lock(handle: int, or_else: bool = True) -> bool:
        """Take the lock of an open file, if nobody has it; `or_else` where the file system knows no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return or_else
        return True
