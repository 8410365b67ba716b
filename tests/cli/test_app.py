from __future__ import annotations

import errno
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import edgellm as package
from edgellm import errors
from edgellm.cli import app, main, run

from .conftest import REAL


def test_help_lists_every_command_with_its_own_text() -> None:
    result = CliRunner().invoke(app.app, ["-h"])
    assert result.exit_code == 0
    width = max(map(len, app.COMMANDS))
    for name, text in app.COMMANDS.items():
        command = importlib.import_module(f"edgellm.cli.{name}").command
        assert command.help.startswith(text)
        assert f"  {name:<{width}}  {text}" in result.output


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_help_for_every_parameter(name: str) -> None:
    result = CliRunner().invoke(app.app, [name, "--help"])
    assert result.exit_code == 0
    command = importlib.import_module(f"edgellm.cli.{name}").command
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgellm.cli import main; main(['--help']); main(['run', '--help']);"
        "heavy = {'numpy', 'numba', 'llvmlite', 'jinja2', 'ssl', 'psutil', 'tqdm'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_version() -> None:
    result = CliRunner().invoke(app.app, ["--version"])
    assert result.output == f"edgellm {package.__version__}\n"


def test_the_public_face() -> None:
    assert dir(package) == package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    every_error = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert every_error <= set(package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (errors.UsageError("bad"), "bad", 2),
        (errors.FormatError("evil \x1b[31m\nname"), r"evil \x1b[31m\nname", 1),
        (MemoryError(), "there is not enough memory for this; a smaller model or context (-c) needs less", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied", 1),
        (RuntimeError("boom"), "unexpected RuntimeError: boom; EDGELLM_DEBUG=1 shows where", 1),
    ],
)
def test_every_error_is_one_line(
    error: Exception,
    line: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("EDGELLM_DEBUG", raising=False)
    monkeypatch.setattr(run, "sampling_params", _raise(error))
    assert main(["run"]) == status
    assert capsys.readouterr() == ("", f"edgellm: error: {line}\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EDGELLM_DEBUG", "1")
    monkeypatch.setattr(run, "sampling_params", _raise(RuntimeError("boom")))
    assert main(["run"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("\nedgellm: error: unexpected RuntimeError: boom\n")


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "sampling_params", _raise(KeyboardInterrupt()))
    assert main(["run"]) == 130
    assert capsys.readouterr() == ("", "")


def _raise(error: BaseException):
    def function(*args: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nonsense"], "No such command 'nonsense' (see: edgellm --help)"),
        (["run", "--xyzzy"], "No such option '--xyzzy' (see: edgellm run --help)"),
        (["pull"], "Missing argument 'NAME...' (see: edgellm pull --help)"),
        (["run", "--temp", "-1"], "--temp/--temperature is -1.0; expected a number of at least 0"),
        (["run", "--temperature", "nan"], "--temp/--temperature is nan; expected a finite number"),
        (["run", "-c", "0"], "-c/--ctx is 0; expected a number of at least 1"),
        (["run", "-t", "0"], "-t/--threads is 0; expected a number of at least 1"),
        (["rm"], "Missing argument 'NAME...' (see: edgellm rm --help)"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert capsys.readouterr() == ("", f"edgellm: error: {line}\n")


@pytest.mark.parametrize("command", [["bench"], ["run"], ["serve"], ["train", "lora", "-o", "x"], ["train", "new"]])
def test_far_more_threads_than_cores_are_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgellm.machine.others.n_cores", lambda: 20)
    assert main([*command, "-t", "1000"]) == 2
    said = "-t/--threads is 1000, and this machine has 20 cores; more threads than cores wait for each other"
    assert capsys.readouterr().err == f"edgellm: error: {said}: expected up to 80\n"
    main([*command, "-t", "80", "--nonsense"])
    assert "No such option" in capsys.readouterr().err


NUMBERS = (click.types.IntParamType, click.types.FloatParamType)


def numeric_options() -> Iterator[tuple[list[str], click.Command, click.Option]]:
    """Every option of every command that takes a number."""
    commands = [([name], importlib.import_module(f"edgellm.cli.{name}").command) for name in app.COMMANDS]
    for words, command in commands:
        if isinstance(command, click.Group):
            context = click.Context(command)
            inner = {name: command.get_command(context, name) for name in command.list_commands(context)}
            commands += [([*words, name], found) for name, found in inner.items()]
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, NUMBERS):
                yield words, command, option


def test_every_number_out_of_range_is_refused_by_the_name_that_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read or fetched: the files and models that are named here are nowhere."""
    found = list(numeric_options())
    assert len(found) > 25
    for words, command, option in found:
        needed = [word for parameter in command.params if parameter.required for word in _given(parameter)]
        for flag in option.opts:
            for value in (*_too_small(option), "many", "nan", "1e999"):
                assert main([*words, *needed, flag, value]) == 2
                out, line = capsys.readouterr()
                assert out == "" and line.count("\n") == 1
                assert all(name in line for name in option.opts), line
                assert value in line or f"{float(value)}" in line
                assert option.name in option.opts[-1] or f"{option.name} " not in line


def _too_small(option: click.Option) -> list[str]:
    if option.name in ("presence_penalty", "frequency_penalty"):  # of any sign
        return []
    may_be_off = ("repeat_last_n", "dry_penalty_last_n", "top_n_sigma", "adaptive_target", "n_keep")  # with -1, or all
    return ["-2" if option.name in may_be_off else "-1"]


def _given(parameter: click.Parameter) -> list[str]:
    return [parameter.opts[0], "nowhere"] if isinstance(parameter, click.Option) else ["nowhere"]


def test_a_parameter_of_the_engine_is_said_as_the_option_that_sets_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = errors.ContextOverflowError("9 tokens; load with a larger n_ctx (up to 16)")
    error.parameter = "n_ctx"  # type: ignore[attr-defined]
    monkeypatch.setattr(run, "sampling_params", _raise(error))
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "edgellm: error: 9 tokens; load with a larger -c/--ctx (up to 16)\n"


@pytest.mark.parametrize(
    ("command", "line", "shown"),
    [
        ("run", "cache_bytes is 10, and n_ctx too large", "--cache-bytes is 10, and -c/--ctx too large"),
        ("run", "the prompt has 9 tokens, max_tokens is 8", "the prompt has 9 tokens, -n/--max-tokens is 8"),
        ("eval", "n_ctx is 9", "-c/--ctx is 9"),
        ("run", "a seed of the model", "a seed of the model"),  # words, not parameters
    ],
)  # fmt: skip
def test_every_parameter_in_an_error_is_an_option(
    command: str, line: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_run", _raise(errors.UsageError(line)))
    assert main([command]) == 2
    assert capsys.readouterr().err == f"edgellm: error: {shown}\n"


@pytest.mark.parametrize(("command", "words"), [("run", "a smaller model or context (-c)"), ("rm", "a smaller model")])
def test_advice_names_only_options_that_there_are(
    command: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_run", _raise(MemoryError()))
    assert main([command]) == 1
    assert capsys.readouterr().err == f"edgellm: error: there is not enough memory for this; {words} needs less\n"


CLOSED = "standard output is closed, so there is nowhere to write to; > /dev/null discards it"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
@pytest.mark.parametrize("words", [*app.COMMANDS, "run -p Hi", "--help", "--version", "run --help", "nonsense"])
def test_a_closed_standard_output_is_said_by_every_command(words: str, home: object) -> None:
    command = f"{shlex.join(REAL)} {words}"
    done = subprocess.run(["sh", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"edgellm: error: {CLOSED}\n")
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], timeout=60)
    assert done.returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
def test_other_closed_streams(home: object) -> None:
    command = shlex.join(REAL)
    done = subprocess.run(["sh", "-c", f"{command} list 2>&- <&-"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("NAME")
    done = subprocess.run(["sh", "-c", f"{command} rm nothing 2>&-"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")  # the error is not put among the output
    done = subprocess.run(["sh", "-c", f"{command} list 1</dev/null"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "edgellm: error: standard output cannot be written to\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently")
@pytest.mark.parametrize("args", [["--help"], ["list"]])
def test_a_closed_pipe_ends_silently(args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*REAL, *args], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
