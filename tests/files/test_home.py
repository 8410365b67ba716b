"""Where models and kernels are kept, for users with a home folder and without one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgellm import files
from edgellm.errors import FileProblem
from edgellm.hub import pip_config

from .test_private import ROOT_ONLY, SOMEBODY, said

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other variables")


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without HOME whom the system does not know; gives what the private folder would be."""
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("EDGELLM_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / f"edgellm-{os.getuid()}"


def test_what_is_set_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/alice")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/cache")
    monkeypatch.setenv("EDGELLM_HOME", "~/models")
    assert files.home() == Path("/homes/alice/models")
    monkeypatch.delenv("EDGELLM_HOME")
    assert files.home() == Path("/fast/cache/edgellm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.home() == Path("/homes/alice/.cache/edgellm")


@pytest.mark.parametrize("setting", ["EDGELLM_HOME", "XDG_CACHE_HOME"])
def test_without_a_home_what_is_set_is_enough(setting: str, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting, "/somewhere")
    assert files.home().parts[:2] == ("/", "somewhere")
    assert not nobody.exists()


def test_without_a_home_it_is_a_private_temporary_folder(nobody: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        assert files.home() == files.home() == nobody
    finally:
        os.umask(before)
    assert stat.S_IMODE(nobody.stat().st_mode) == 0o700
    (line,) = said(caplog)
    assert str(nobody) in line and "EDGELLM_HOME" in line


def test_a_home_that_is_the_root_folder_is_none(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So containers start a user that their system does not know."""
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert files.home() == nobody
    monkeypatch.setattr(os, "access", lambda path, how: True)
    assert files.home() == Path("/.cache/edgellm")


def planted_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to("elsewhere")


def planted_file(folder: Path) -> None:
    folder.touch()


def planted_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def planted_by_another(folder: Path) -> None:
    folder.mkdir(0o700)
    os.chown(folder, SOMEBODY, SOMEBODY)


@pytest.mark.parametrize(
    "plant", [planted_link, planted_file, planted_open, pytest.param(planted_by_another, marks=ROOT_ONLY)]
)
def test_what_another_user_planted_there_is_not_used(plant, nobody: Path) -> None:
    plant(nobody)
    with pytest.raises(FileProblem, match=r"no home folder, and none .*edgellm-.*; set EDGELLM_HOME to a folder"):
        files.home()


def test_no_temporary_folder_either(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(FileProblem, match=r"No usable temporary directory.*set EDGELLM_HOME"):
        files.home()


def test_the_settings_of_pip_are_looked_for_without_a_home(nobody: Path) -> None:
    assert list(pip_config._config_files({}))


@ROOT_ONLY
def test_commands_of_such_a_user() -> None:
    """From the outside: no HOME and a number that no passwd entry has."""
    code = """
import logging, os, sys, tempfile
from edgellm.cli import main
main(["list"]), main(["run", "~nobody/first.gguf"])  # the other user may not be allowed to import
os.setgroups([]), os.setgid(54321), os.setuid(54321)
sys.exit(main(["list"]) or main(["run", "~nobody/second.gguf"]))
"""
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o1777)
        environment = {"PATH": os.environ["PATH"], "TMPDIR": temporary, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stdout.startswith("NAME")
        _, told, error = done.stderr.splitlines()
        assert f"keeps models and compiled kernels in {temporary}/edgellm-54321" in told
        assert error == "edgellm: error: ~nobody/second.gguf: no such file"
