"""What people should know and what is no error: said once, through `logging`.

Python writes it to standard error, as one line, unless a program has set up `logging` otherwise.
"""

from __future__ import annotations

_said: set[str] = set()


def say_once(line: str) -> None:
    """Log a warning of "edgellm", unless this process has logged the same line before."""
    if line not in _said:
        _said.add(line)
        import logging  # here, for hardly any start has something to say

        logging.getLogger("edgellm").warning("%s", line)
