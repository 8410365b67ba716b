"""The house: a module of edgellm imports from lower floors or its own folder. Only cli/ prints or exits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "cli": 9,
    "server": 8,
    "convert": 7,
    "train": 7,
    "agent": 6,
    "evaluate": 6,
    "measure": 6,
    "engine": 5,
    "arch": 4,
    "text": 4,
    "graph": 3,
    "kernels": 2,
    "formats": 2,
    "hub": 2,
    "quants": 1,
    "dataclass": 0,
    "errors": 0,
    "checks": 0,
    "params": 0,
    "files": 0,
    "machine": 0,
    "_version": 0,
}
TOP = max(FLOORS.values())
FACE = {"__init__", "__main__"}  # the public face imports from everywhere; only the top floor imports it
TERMINAL = {"print", "input", "exit", "SystemExit", "sys.exit", "os._exit", "sys.stdout", "sys.stderr"}
MOST_LINES = 450  # aim at 400; a test file may be a long table

MODULES = sorted((ROOT / "edgellm").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place_of(path: Path) -> str:
    """The folder of a module inside edgellm, or the module's own name when it lies in none."""
    return path.relative_to(ROOT / "edgellm").with_suffix("").parts[0]


def imports_of(path: Path, text: str) -> Iterator[str]:
    """Absolute names of all that a module imports: inside functions too, and for types too.

    A type in a signature is knowledge of where it lives, so TYPE_CHECKING is no staircase.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = (*base, *([node.module] if node.module else []))
            yield from (".".join((*source, alias.name)) for alias in node.names)


def wrong_imports(path: Path, text: str) -> list[str]:
    """What a module of edgellm imports and must not."""
    here = place_of(path)

    def may_import(name: str) -> bool:
        package, _, rest = name.partition(".")
        if package != "edgellm":
            return package not in ("tools", "tests")
        there = rest.split(".")[0]
        floor = FLOORS.get(there, TOP - 0.5)  # what has no floor is a name of the face
        return there == here or floor < FLOORS[here] or floor == FLOORS[here] == 0

    return [name for name in imports_of(path, text) if not may_import(name)]


def terminal_words(text: str) -> set[str]:
    """The names in a module that print to people, read from them, or end the process."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Name, ast.Attribute))]
    return TERMINAL & {ast.unparse(node) for node in nodes if isinstance(node.ctx, ast.Load)}  # not a field of a name


def test_every_module_has_a_floor() -> None:
    assert {place_of(path) for path in MODULES} <= set(FLOORS) | FACE


def test_imports_go_down() -> None:
    inside = [path for path in MODULES if place_of(path) not in FACE]
    found = {named(path): wrong_imports(path, path.read_text(encoding="utf-8")) for path in inside}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("kernels/a.py", "import edgellm.graph.team"),
        ("kernels/a.py", "from edgellm import engine"),
        ("formats/gguf/a.py", "def f():\n    from edgellm.hub import pull"),
        ("formats/gguf/a.py", "from ...hub import pull"),
        ("engine/a.py", "if TYPE_CHECKING:\n    from edgellm.train import Trainer"),
        ("engine/a.py", "import edgellm"),
        ("params.py", "from edgellm.quants import FORMATS"),
        ("cli/a.py", "from tools import quality"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(path: str, line: str) -> None:
    assert wrong_imports(ROOT / "edgellm" / path, line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("kernels/a.py", "from edgellm.quants.base import BlockFormat"),
        ("formats/gguf/a.py", "from . import spec\nfrom edgellm.formats.gguf.spec import MAGIC"),
        ("params.py", "from edgellm.errors import UsageError"),
        ("cli/a.py", "import edgellm\nfrom edgellm import load"),
        ("cli/a.py", "import tools_of_others, numpy.testing"),
    ],
)
def test_an_import_that_goes_down_is_allowed(path: str, line: str) -> None:
    assert wrong_imports(ROOT / "edgellm" / path, line) == []


def test_only_the_terminal_prints_and_exits() -> None:
    quiet = [path for path in MODULES if place_of(path) not in FACE | {"cli"}]
    found = {named(path): terminal_words(path.read_text(encoding="utf-8")) for path in quiet}
    assert {name: words for name, words in found.items() if words} == {}


def test_terminal_words_are_found() -> None:
    text = "import sys\nprint(1)\nsys.exit(2)\nraise SystemExit\nfile.print(3)"
    assert terminal_words(text) == {"print", "sys.exit", "SystemExit"}


def test_files_stay_small() -> None:
    lengths = {named(path): path.read_bytes().count(b"\n") for path in MODULES + TOOLS}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
