"""The command group, and the one place where errors become a line and an exit status.

0    all is well
1    a file, model, template, download or memory problem; standard input that is not text; a closed standard output
2    a wrong option or parameter
130  stopped by Ctrl-C
141  standard output was closed (`edgellm ... | head`); says nothing
143  stopped by SIGTERM (129: by SIGHUP), with nothing left half-written
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from edgellm._version import __version__
from edgellm.cli.lazy import LazyGroup
from edgellm.cli.options import as_typed
from edgellm.cli.signals import ended_in_order
from edgellm.cli.terminal import one_line, with_standard_streams
from edgellm.errors import EdgellmError, FileProblem

# Each command lives in the module of its name. The texts stand here so that --help imports none of them.
COMMANDS = {
    "run": "Talk to a model, or answer one prompt.",
    "batch": "Answer many requests, several at once.",
    "embed": "Turn texts into vectors, or rank them.",
    "serve": "Answer HTTP requests with this machine's models.",
    "launch": "Configure an editor or coding agent for this server.",
    "pull": "Fetch a model and check it.",
    "list": "Show the models of this machine and of the catalogue.",
    "rm": "Delete models.",
    "info": "Show what is in a model file, or what this machine offers.",
    "cache": "Show what is kept on the disk of long prompts, or clear it.",
    "doctor": "Say what this machine gives, and which model to choose for it.",
    "bench": "Measure the speed of a model.",
    "convert": "Turn a trained checkpoint into a GGUF file.",
    "merge": "Put adapters into a model, as a new GGUF file.",
    "quantize": "Make a GGUF file smaller.",
    "export": "Write a GGUF file as a Hugging Face folder.",
    "eval": "Measure how good a model is.",
    "imatrix": "Find out which weights matter, for better quantizing.",
    "train": "Teach a model, or see what it would learn from.",
    "completion": "Print what makes a shell complete the words of edgellm.",
}

# What newer versions of click raise for a command that needs a word more; older ones show the help by themselves.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
INTERRUPTED = 130  # 128 + SIGINT, as shells count
COMPLETION_VARIABLE = "_EDGELLM_COMPLETE"  # a shell asks what may follow the words so far
OUTPUT_CLOSED = 141  # 128 + SIGPIPE
# So many before garbage is looked for: a start makes a hundred thousand that stay, and looking is a part of its time.
NEW_OBJECTS = 200_000


@click.group(
    cls=LazyGroup,
    package="edgellm.cli",
    texts=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`edgellm run` fetches a small model and starts a chat. `edgellm COMMAND -h` explains a command. "
    "Models and compiled kernels are kept in EDGELLM_HOME, by default your cache folder.",
)
@click.version_option(__version__, message="edgellm %(version)s")
def app() -> None:
    """Run language models on this computer's CPU."""


def program() -> int:
    """`main`, as what a process does before it ends."""
    status = main()
    gc.freeze()  # so that Python does not look through all that is left: 30 ms of each command
    return status


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors are one line on standard error."""
    words = sys.argv[1:] if args is None else list(args)
    output_is_closed = sys.stdout is None
    with_standard_streams()
    usual = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS)
    try:
        with ended_in_order():
            if output_is_closed:
                raise FileProblem("standard output is closed, so there is nowhere to write to; > /dev/null discards it")
            _run(words)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if _means_closed_output(error):
            _forget_stdout()
            return OUTPUT_CLOSED
        if os.environ.get("EDGELLM_DEBUG"):
            import traceback

            traceback.print_exc()
        line, status = _explain(error, words)
        print(f"edgellm: error: {one_line(line)}", file=sys.stderr)
        return status
    finally:
        gc.set_threshold(*usual)


def _run(args: list[str]) -> None:
    # Not `app.main`: click would print and exit by itself on Ctrl-C and closed pipes.
    _accept_any_text(sys.stdout, "replace")
    _accept_any_text(sys.stderr, "backslashreplace")
    if shell := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        shell_complete(app, {}, "edgellm", COMPLETION_VARIABLE, shell)
        return
    try:
        with app.make_context("edgellm", args) as context:
            app.invoke(context)
    except click.exceptions.Exit:  # --help and --version are done
        pass
    except _NO_ARGUMENTS as asked:
        click.echo(asked.ctx.get_help())
    sys.stdout.flush()


def _explain(error: Exception, words: list[str]) -> tuple[str, int]:
    """The line and the exit status for an error."""
    if isinstance(error, EdgellmError):
        return as_typed(error, _options(words)), error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context else ""
        return f"{error.format_message().rstrip('.')}{hint}", error.exit_code
    if isinstance(error, MemoryError):
        has_context = any(option.name == "n_ctx" for option in _options(words))
        what = "a smaller model or context (-c)" if has_context else "a smaller model"
        return f"there is not enough memory for this; {what} needs less", 1
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", 1
    if isinstance(error, OSError) and error.errno == errno.EBADF and not error.filename:
        return "standard output cannot be written to", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    hint = "" if os.environ.get("EDGELLM_DEBUG") else "; EDGELLM_DEBUG=1 shows where"
    return f"unexpected {type(error).__name__}: {error}{hint}", 1


def _options(words: list[str]) -> Iterator[click.Option]:
    """The options of the command that was typed, or of all in its group."""
    command: click.Command = app
    for word in words:
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), word) or command
    commands = [command]
    if isinstance(command, click.Group) and command is not app:
        context = click.Context(command)
        commands += [found for name in command.list_commands(context) if (found := command.get_command(context, name))]
    yield from (option for one in commands for option in one.params if isinstance(option, click.Option))


def _accept_any_text(stream: object, errors: str) -> None:
    """What cannot show a character shows a question mark or its number, and is no error.

    Windows gives files and pipes the old code page of the country; they get UTF-8, as everywhere else.
    """
    if reconfigure := getattr(stream, "reconfigure", None):
        is_old_page = sys.platform == "win32" and not os.environ.get("PYTHONIOENCODING")
        reconfigure(errors=errors, **({"encoding": "utf-8"} if is_old_page else {}))


def _means_closed_output(error: Exception) -> bool:
    """Whether nobody reads our output any more. Windows says no more than "invalid argument", of no file."""
    if sys.platform == "win32" and isinstance(error, OSError) and error.errno == errno.EINVAL:
        return error.filename is None
    return isinstance(error, BrokenPipeError)


def _forget_stdout() -> None:
    """Give the interpreter something that it can flush at exit: the reader of our output is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
