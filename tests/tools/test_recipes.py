"""The recipes for other machines: they run what README says, on every system and Python that pyproject.toml names."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
JOBS = WORKFLOW["jobs"]


def versions() -> list[str]:
    """3.10 and so on, as the classifiers name them."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"])
    return [match[1] for match in found if match]


def steps(job: str) -> list[dict[str, Any]]:
    return JOBS[job]["steps"]


def test_every_python_that_is_supported_is_tried() -> None:
    assert JOBS["check"]["strategy"]["matrix"]["python"] == versions()
    assert all(isinstance(version, str) for version in versions())  # 3.10 as a number would be 3.1
    minors = [int(version.partition(".")[2]) for version in versions()]
    assert all(later == earlier + 1 for earlier, later in pairwise(minors))
    assert PROJECT["requires-python"] == f">={versions()[0]}"  # without an upper end


@pytest.mark.parametrize("job", ["check", "first-answer"])  # one system is enough for a load
@pytest.mark.parametrize("system", [r"ubuntu-[\d.]+", r"ubuntu-[\d.]+-arm", r"macos-\d+", r"windows-\d+"])
def test_every_system_is_tried(job: str, system: str) -> None:
    assert JOBS[job]["runs-on"] == "${{ matrix.machine }}"
    assert any(re.fullmatch(system, machine) for machine in JOBS[job]["strategy"]["matrix"]["machine"])


@pytest.mark.parametrize(("job", "section"), [("check", "Develop"), ("first-answer", "Start")])
def test_the_commands_are_those_of_readme(job: str, section: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(rf"^## {section}\n.*?^```sh\n(.*?)\n```$", readme, re.MULTILINE | re.DOTALL)
    assert command is not None
    assert command[1] in [step.get("run") for step in steps(job)]


def test_nothing_is_allowed_but_reading() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in JOBS.values())
