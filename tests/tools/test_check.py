"""The gate: every step runs, whatever became of those before, and one that fails is named."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests import conftest

PATH = Path(__file__).parents[2] / "tools" / "check"


@pytest.fixture
def check() -> ModuleType:
    loader = SourceFileLoader("tools_check", str(PATH))
    module = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("failing", [[], ["mypy"], ["ruff", "pytest"]])
def test_all_steps_run(check: ModuleType, failing: list[str], monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], cwd: Path) -> SimpleNamespace:
        python, _, *words = command
        assert (python, cwd) == (sys.executable, PATH.parents[1])
        ran.append(words)
        return SimpleNamespace(returncode=int(words[0] in failing))

    monkeypatch.setattr(check.subprocess, "run", run)
    assert check.main(["-k", "tokenizer"]) == bool(failing)
    assert [words[0] for words in ran] == ["ruff", "mypy", "pytest", "pytest"]
    assert [words for words in ran if "tokenizer" in words] == ran[-1:]
    said = {"mypy": "types", "ruff": "style", "pytest": "floors tests"}
    lines = capfd.readouterr().err.split("\n")
    assert lines == (["", f"tools/check failed: {' '.join(said[name] for name in failing)}", ""] if failing else [""])


@pytest.mark.skipif(sys.platform == "win32", reason="there it is run as `python tools/check`")
def test_it_is_a_program(tmp_path: Path) -> None:
    """From any folder, by the Python that is found first."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([PATH, "-x"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{PATH} -x\n"


def asked_for(**options: bool) -> Any:
    """A run of pytest with these options."""
    told: list[SimpleNamespace] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: told.extend(items))
    return SimpleNamespace(option=SimpleNamespace(**options), hook=hook, told=told)


@pytest.mark.parametrize("is_all", [True, False])
def test_thorough_tests_wait_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, is_all: bool) -> None:
    monkeypatch.setattr(conftest, "PROFILE", "gate")
    usual = SimpleNamespace(path=Path(__file__), get_closest_marker=lambda name: None)
    thorough = SimpleNamespace(path=Path(__file__), get_closest_marker=lambda name: name == "thorough")
    items, run = [usual, thorough], asked_for(all=is_all)
    conftest.pytest_collection_modifyitems(run, items)
    assert items == ([usual, thorough] if is_all else [usual])
    assert run.told == ([] if is_all else [thorough])


def test_the_longest_files_are_begun_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here, tests = Path(__file__), Path(conftest.__file__).parent
    longest = [tests / name for name in conftest.LONGEST]
    assert all(path.is_file() for path in longest)
    items = [SimpleNamespace(path=path) for path in (here, *longest[::-1], here, longest[1])]
    monkeypatch.setattr(conftest, "IS_ONE_OF_SEVERAL", True)
    monkeypatch.setattr(conftest, "PROFILE", "gate")
    conftest.pytest_collection_modifyitems(asked_for(all=True), items)
    assert [item.path for item in items] == [longest[0], longest[1], longest[1], *longest[2:], here, here]
