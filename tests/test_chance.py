"""Tests pass or fail by the code alone: none draws other numbers in the next run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
FILES = sorted({*(ROOT / "tests").rglob("*.py")} - {ROOT / "tests/conftest.py"})
GENERATORS = ("default_rng", "Random", "RandomState", "SeedSequence")  # without a seed, they draw one
OF_THE_PROFILE = {"derandomize", "database"}  # settings that no test may choose for itself


def chances(text: str) -> list[str]:
    """What in a test's source differs from run to run."""
    found = []
    tree = ast.parse(text)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        module, _, function = name.rpartition(".")
        if function in GENERATORS and not node.args and not keywords:
            found.append(name)
        if module == "np.random" or (module in ("random", "secrets") and module in modules) or name == "os.urandom":
            found += [name] if function not in GENERATORS else []  # the generator of the whole process
        if name == "settings":
            deadline = keywords.get("deadline")
            found += sorted(OF_THE_PROFILE & set(keywords))
            if deadline is not None and not (isinstance(deadline, ast.Constant) and deadline.value is None):
                found.append("deadline")
    return found


def test_no_test_is_left_to_chance() -> None:
    found = {path.relative_to(ROOT).as_posix(): chances(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "line",
    ["np.random.default_rng()", "random.Random()", "import random\nrandom.shuffle(x)", "np.random.rand(3)",
     "os.urandom(3)", "settings(deadline=200)", "settings(max_examples=3, derandomize=False)"],
)  # fmt: skip
def test_chance_is_found(line: str) -> None:
    assert chances(line)


@pytest.mark.parametrize("line", ["np.random.default_rng(0)", "random.Random(seed)", "settings(deadline=None)"])
def test_what_is_the_same_in_every_run_is_allowed(line: str) -> None:
    assert chances(line) == []


def test_the_gate_tries_the_same_in_every_run() -> None:
    gate, search = settings.get_profile("gate"), settings.get_profile("search")
    assert gate.derandomize and gate.deadline is None
    assert not search.derandomize and search.deadline is None
    assert settings.default == (search if os.environ.get("HYPOTHESIS_PROFILE") == "search" else gate)


PROPERTY = """
from hypothesis import given, settings, strategies as st

seen = []

@settings(max_examples=7)
@given(st.integers())
def test_property(number):
    seen.append(number)

def test_tell():
    print(*seen)
"""


def examples(profile: str, folder: Path) -> list[str]:
    """What a property is tried with, under tests/conftest.py."""
    (folder / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    (folder / "test_one.py").write_text(PROPERTY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", folder],
        env={**os.environ, "HYPOTHESIS_PROFILE": profile, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=folder,
    )
    return next(line for line in done.stdout.splitlines() if line.startswith(".")).strip(".").split()


def test_a_search_tries_more_and_other_examples(tmp_path: Path) -> None:
    gate = examples("gate", tmp_path)
    assert len(gate) == 7 and examples("gate", tmp_path) == gate
    search = examples("search", tmp_path)
    assert len(search) == 70 and examples("search", tmp_path) != search
