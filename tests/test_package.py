"""The package as a whole: light to import, true to its names and version, pure Python, of no workplace."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgellm
from tests.test_floors import MODULES, imports_of

ROOT = Path(__file__).parents[1]
HEAVY = ("numba", "llvmlite", "numpy", "jinja2", "torch", "click")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".cfg", ".ini", ".yml", ".yaml", ".svg", ""}


def texts() -> Iterator[tuple[str, str]]:
    """Every text file that belongs to the repository, with its relative path."""
    folders = (ROOT / name for name in ("edgellm", "tools", "tests", "docs", "models", ".ci", ".github"))
    inside = (path for folder in folders for path in folder.rglob("*"))
    for path in sorted([*inside, *ROOT.glob("*")]):
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_import_is_light() -> None:
    code = f"import sys, edgellm; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_can_be_had() -> None:
    assert [name for name in edgellm.__all__ if getattr(edgellm, name, None) is None] == []
    assert sorted(set(edgellm.__all__)) == sorted(edgellm.__all__)
    assert set(edgellm.__all__) <= set(dir(edgellm))


def test_every_error_is_public() -> None:
    from edgellm import errors

    public = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert public <= set(edgellm.__all__)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        edgellm.no_such_name  # noqa: B018


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("edgellm") == edgellm.__version__
    states_one = re.compile(r"^(__version__|version) *=", re.MULTILINE)
    package = {path: text for path, text in texts() if path.startswith(("edgellm/", "pyproject.toml"))}
    assert [path for path, text in package.items() if states_one.search(text)] == ["edgellm/_version.py"]


def test_no_path_of_a_workplace_is_named() -> None:
    place = re.compile(r"(?<![\w.~$}])/(?:work|root|home/\w+|Users/\w+)/")
    assert [(path, line) for path, text in texts() for line in text.split("\n") if place.search(line)] == []


# Every type checker brings it; a program never imports it.
FOR_TYPE_CHECKERS = ("typing_extensions",)


def test_what_is_for_type_checkers_is_not_imported() -> None:
    for path in MODULES:
        kept = re.sub(r"^if TYPE_CHECKING:\n(?:    .*\n|\n)*", "", path.read_text("utf-8"), flags=re.MULTILINE)
        assert not {name.partition(".")[0] for name in imports_of(path, kept)} & set(FOR_TYPE_CHECKERS), path


def test_every_import_is_a_declared_dependency() -> None:
    """Inside functions and for other systems too: what another package happens to bring may be gone tomorrow."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = re.findall(
        r"^(?:dependencies|parquet|structure|mcp|server) = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL
    )
    assert len(tables) == 5
    declared = set(re.findall(r'"([\w-]+)', "".join(tables).lower()))
    named_otherwise = {"yaml": "pyyaml"}
    imported = {name.partition(".")[0] for path in MODULES for name in imports_of(path, path.read_text("utf-8"))}
    others = imported - sys.stdlib_module_names - {"edgellm", "__future__", *FOR_TYPE_CHECKERS}
    assert {named_otherwise.get(name, name) for name in others} <= declared


def test_the_wheel_is_pure_python_and_whole(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is not installed")
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip_wheel, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"edgellm-{edgellm.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {"edgellm/hub/catalog.toml", "edgellm/py.typed"} <= names
    assert {path for path, _ in texts() if re.match(r"edgellm/.*\.py$", path)} <= names
    assert {name.split("/")[0] for name in names} == {"edgellm", f"edgellm-{edgellm.__version__}.dist-info"}
