"""Compiled chat templates in the cache folder: compiling a long one takes longer than reading a short prompt.

What is kept is the program that Jinja makes of a template, and the texts that the template spells out. A program is
found again under a hash of its source, of the code that made it and of the version of Python, and is run only from a
file that nobody else can have written and that is as it was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

from jinja2 import Template, compiler, environment, lexer, parser

from edgellm.errors import FileProblem
from edgellm.files import private, templates_folder
from edgellm.text import template_compiler, template_sandbox

if TYPE_CHECKING:
    from edgellm.text.template_sandbox import GuardedEnvironment

LEAST_SOURCE = 1000  # characters; shorter ones are compiled in a few milliseconds
MOST_KEPT = 64
_DIGEST_BYTES = 32
_MADE_BY = (compiler, environment, lexer, parser, template_compiler, template_sandbox)


def template_of(source: str, environment: GuardedEnvironment) -> Template:
    """The template of a source; the environment is for it alone. Raises what Jinja raises for a malformed one."""
    path = _path(source)
    code = path and _read(path, environment)
    if not code:
        code = environment.compile(source)
        if path:
            _keep(path, code, environment.constants)
    return Template.from_code(environment, code, environment.make_globals(None))


def _path(source: str) -> Path | None:
    """Where its program is kept, or will be; None for a short one, and where there is no place."""
    if len(source) < LEAST_SOURCE:
        return None
    whole = f"{_makers()}\0{source}".encode("utf-8", "surrogatepass")
    with contextlib.suppress(FileProblem, OSError):
        return templates_folder() / hashlib.sha256(whole).hexdigest()
    return None


@cache
def _makers() -> str:
    """A hash of all that a program depends on beside its source."""
    digest = hashlib.sha256(sys.version.encode())
    for module in _MADE_BY:
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.hexdigest()


def _read(path: Path, environment: GuardedEnvironment) -> CodeType | None:
    """The program that is kept there, its texts given to the environment; None when there is none."""
    content = private.read(path) or b""
    kept = content[_DIGEST_BYTES:]
    if not kept or content[:_DIGEST_BYTES] != _digest(path, kept):
        return None
    code, constants = marshal.loads(kept)
    for text in constants:
        environment.constants.append(text)
    return code


def _keep(path: Path, code: CodeType, constants: Sequence[str]) -> None:
    kept = marshal.dumps((code, [str(text) for text in constants]))
    private.keep(path, _digest(path, kept) + kept)
    _remove_oldest(path.parent)


def _digest(path: Path, kept: bytes) -> bytes:
    return hashlib.sha256(f"{path.name}\0".encode() + kept).digest()


def _remove_oldest(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process may do the same
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST_KEPT]:
            file.unlink()
