"""Kernels that were compiled ahead and ship inside a wheel, one file for each instruction set.

`tools/build_wheel.py` makes such wheels; any other installation has none. A file is two lines and then objects:

    edgellm kernels 1
    {"made": {"platform": ..., "isa": ..., "sources": ...}, "objects": {"add": [offset, n_bytes, sha256], ...}}

It is used when it was made for this platform from the very sources that are here, and when the CPU has all that
the code may use. An object's SHA-256 covers the name of its kernel and how it was made, so that none can pass for
another. Whatever does not fit is as good as absent: the kernel is then compiled. No compiler's version matters,
for nothing here is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgellm.files import atomic_write
from edgellm.kernels.isa import Isa, host
from edgellm.kernels.registry import Kernel
from edgellm.kernels.sources import source_hash

FOLDER = Path(__file__).parent / "objects"  # trusted as much as the sources beside it
_MAGIC = b"edgellm kernels 1"


def read(isa: Isa, sources: str, kernels: Iterable[Kernel]) -> dict[Kernel, bytes]:
    """The objects of those kernels that ship for this machine and can be trusted. Never raises.

    sources:  what `source_hash` says of the sources that are here.
    """
    try:
        table, objects = _open(isa, sources)
    except _UnfitError:
        return {}
    made = _made(isa, sources)
    found = {kernel: _object(table, objects, made, kernel.name) for kernel in kernels}
    return {kernel: code for kernel, code in found.items() if code}


def describe(isa: Isa) -> str:
    """One line for `edgellm info`: what ships for an instruction set, or why it is not used."""
    try:
        table, _ = _open(isa, source_hash())
    except _UnfitError as reason:
        return str(reason)
    return f"{len(table)} kernels for {isa.name}, each used until it is compiled here"


def write(folder: Path, isa: Isa, sources: str, objects: Mapping[str, bytes]) -> Path:
    """Write the file of an instruction set from the objects of its kernels, by name; returns its path."""
    made = _made(isa, sources)
    table, end = {}, 0
    for name, code in objects.items():
        table[name] = [end, len(code), _digest(made, name, code)]
        end += len(code)
    path = _path(folder, isa)
    with atomic_write(path) as file:
        file.write(b"\n".join([_MAGIC, json.dumps({"made": made, "objects": table}).encode(), b""]))
        file.writelines(objects.values())
    return path


class _UnfitError(Exception):
    """Why the file of an instruction set is not used."""


def _open(isa: Isa, sources: str) -> tuple[dict[str, Any], bytes]:
    """The table of a file that fits, and its objects. Raises _UnfitError."""
    if os.environ.get("EDGELLM_PREBUILT") == "0":
        raise _UnfitError("not used, as EDGELLM_PREBUILT=0 says")
    try:
        content = _path(FOLDER, isa).read_bytes()
    except OSError:
        raise _UnfitError(f"none for {isa.name} in this installation") from None
    try:
        magic, index, objects = content.split(b"\n", 2)
        found = json.loads(index)
        made, table = found["made"], found["objects"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _UnfitError("not used: the file is damaged") from None
    if magic != _MAGIC or not isinstance(made, dict) or not isinstance(table, dict):
        raise _UnfitError("not used: the file is damaged")
    if made.get("sources") != sources:
        raise _UnfitError("not used: made from other sources than these")
    if isa.portable is None or made != _made(isa, sources):
        raise _UnfitError("not used: made for another machine")
    if lacking := isa.portable.lacks(host()[1]):
        raise _UnfitError(f"not used: this CPU lacks {', '.join(lacking)}")
    return table, objects


def _object(table: dict[str, Any], objects: bytes, made: dict[str, str], name: str) -> bytes | None:
    try:
        start, n_bytes, digest = table[name]
        code = objects[start : start + n_bytes]
    except (KeyError, ValueError, TypeError):
        return None
    return code if digest == _digest(made, name, code) else None


def _path(folder: Path, isa: Isa) -> Path:
    return folder / f"{isa.name}.kernels"


def _made(isa: Isa, sources: str) -> dict[str, str]:
    """How objects come to be that are right for this process; the sources say what `isa` is compiled for."""
    bits = sys.maxsize.bit_length() + 1
    return {"platform": f"{sys.platform} {platform.machine()} {bits}", "isa": isa.name, "sources": sources}


def _digest(made: dict[str, str], name: str, code: bytes) -> str:
    return hashlib.sha256("\0".join([*made.values(), name, ""]).encode() + code).hexdigest()
