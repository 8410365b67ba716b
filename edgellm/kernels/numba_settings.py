"""Numba as it is where nobody has set anything.

NUMBA_* variables, a .numba_config.yaml and `numba.config` are there for people's own code. Some would keep kernels
from being compiled; others would change the machine code, which is kept for starts where they are not set.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from edgellm.errors import KernelError

_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def plain_numba() -> Iterator[None]:
    """Inside, Numba's settings are its defaults; afterwards they are what they were. One thread at a time.

    Raises KernelError when there is no Numba that works.
    """
    with _one_at_a_time:
        config = _settings()
        found = {name: value for name, value in vars(config).items() if name.isupper()}
        reader = config._env_reloader
        try:
            config._EnvReloader.process_environ(reader, {})
            config._env_reloader = SimpleNamespace(update=lambda: None)  # the compiler reads variables anew
            yield
        finally:
            config._env_reloader = reader
            vars(config).update(found)


def _settings() -> Any:
    """Numba's module of settings. When it is first imported it must not see variables, of which some would stop it."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("NUMBA_")}
    try:
        from numba.core import config
    except Exception as problem:
        raise KernelError(f"Numba, which compiles kernels, cannot be imported: {problem}") from problem
    finally:
        os.environ.update(hidden)
    return config
