"""Completion of words by shells: the scripts in real shells, where there are any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.cli.completion import SHELLS

from .conftest import REAL


@pytest.fixture
def path_with_edgellm(tmp_path: Path, home: Path) -> str:
    """A PATH on which `edgellm` is the one of this tree."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "edgellm").write_text(f'#!/bin/sh\nexec {" ".join(REAL)} "$@"\n')
    (folder / "edgellm").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def offered(words: list[str], home: Path) -> list[str]:
    """What edgellm offers for the last of some words, as bash asks for it."""
    asked = {"_EDGELLM_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(REAL, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_options_and_models_are_offered(home: Path) -> None:
    (home / "models" / "hf" / "org" / "repo").mkdir(parents=True)
    assert offered(["edgellm", "qu"], home) == ["quantize"]
    assert offered(["edgellm", "run", "--when"], home) == ["--when-full"]
    assert offered(["edgellm", "run", "--when-full", "s"], home) == ["stop", "shift"]
    for command in ("run", "pull", "rm", "info", "bench", "export", "imatrix", "quantize", "eval perplexity"):
        assert "smollm2-135m" in offered(["edgellm", *command.split(), "smo"], home), command


def test_where_no_model_begins_so_the_shell_completes_files(home: Path) -> None:
    asked = {"_EDGELLM_COMPLETE": "bash_complete", "COMP_WORDS": "edgellm run ./my", "COMP_CWORD": "2"}
    done = subprocess.run(REAL, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stdout == "file,./my\n"


def test_nothing_heavy_is_imported_while_somebody_types(home: Path) -> None:
    code = (
        "import os, sys; os.environ.update(_EDGELLM_COMPLETE='bash_complete', COMP_WORDS='edgellm run s',"
        " COMP_CWORD='2'); from edgellm.cli import main; main([]);"
        "heavy = {'numpy', 'numba', 'llvmlite', 'jinja2', 'ssl', 'rich', 'prompt_toolkit'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_EDGELLM_COMPLETE" in script and "edgellm" in script


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(("shell", "options", "begin"), [
    ("bash", ["--norc", "--noprofile"], 'eval "$(edgellm completion bash)"'),
    ("zsh", ["-f"], 'autoload -U compinit; compinit -u -D; eval "$(edgellm completion zsh)"'),
    ("fish", ["--no-config"], "edgellm completion fish | source"),
])  # fmt: skip
def test_a_real_shell_completes(path_with_edgellm: str, tmp_path: Path, shell: str, options: list[str], begin: str):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    pytest.importorskip("pexpect")
    pytest.importorskip("pyte")
    from tools.terminal import Terminal

    environ = {"PATH": path_with_edgellm, "HOME": str(tmp_path), "PS1": "> "}
    terminal = Terminal([shell, *options], columns=120, seconds=30, **environ)
    try:
        terminal.type(f"{begin}; echo re''ady\r")
        terminal.wait_for(lambda text: "\nready" in text)
        terminal.type("edgellm run smo\t")
        terminal.wait_for("edgellm run smollm2-135m")
        terminal.type("--when-f\t")
        terminal.wait_for("--when-full")
    finally:
        terminal.kill()
