"""What config.json promises of a checkpoint's tensors: parts that a layer has only where some key says so.

A forward pass takes the tensors that are there. Where a part may be there or not, without it a model would run and say
something else; so a kind of checkpoint states when there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edgellm.formats.settings import Settings


class Promise(NamedTuple):
    """When a layer has a part.

    holds:  whether the layer of a number has it; None where it may be there, and nothing reads it.
    keys:   those of config.json that say so.
    """

    holds: Callable[[Settings, int], bool | None]
    keys: tuple[str, ...] = ()


ALWAYS = Promise(lambda s, layer: True)


def where(key: str, value: bool = True) -> Promise:
    """Every layer has the part where a flag has this value, and none has it otherwise."""
    return Promise(lambda s, layer: s.flag(key) is value, (key,))
