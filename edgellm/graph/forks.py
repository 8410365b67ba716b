"""Forks: a child process has a copy of its parent's memory, and none of its threads but the one that forked.

So a lock that another thread held stays locked there for ever, and nobody does the work of a team. Whoever has locks
or threads says here what is to be done about them, and the child can go on with what its parent had loaded.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

_Step = Callable[[Any], None]
_lock = threading.RLock()
_steps: weakref.WeakKeyDictionary[Any, dict[str, _Step]] = weakref.WeakKeyDictionary()
_ready: list[tuple[Any, dict[str, _Step]]] = []  # who is ready for the fork that is going on


def at_fork(owner: Any, **steps: _Step) -> None:
    """As long as `owner` lives, call before(owner) before this process forks, then in_parent(owner) or in_child(owner).

    Any of the three may be left out. In the child, only the thread that forked is there.
    """
    with _lock:
        _steps[owner] = steps


def _before() -> None:
    _lock.acquire()
    for owner, steps in list(_steps.items()):
        if step := steps.get("before"):
            step(owner)
        _ready.append((owner, steps))  # one by one: Ctrl-C may end this, and the process forks all the same


def _after(name: str) -> None:
    try:
        while _ready:
            owner, steps = _ready.pop()
            if step := steps.get(name):
                step(owner)
    finally:
        _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=partial(_after, "in_parent"), after_in_child=partial(_after, "in_child")
    )
