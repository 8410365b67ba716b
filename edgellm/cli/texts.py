"""What the commands share that read a long text in windows: options, the text itself, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgellm.cli.options import activations_option, as_runtime, threads_option
from edgellm.cli.progress import Progress
from edgellm.errors import FormatError
from edgellm.params import DEFAULT_WINDOW, LEAST_WINDOW

if TYPE_CHECKING:
    from edgellm.engine import Model

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = [
    click.option("-f", "--file", "text_file", type=click.Path(path_type=Path), required=True, metavar="TEXT",
                 help="The text, a UTF-8 file."),
    click.option("-c", "--ctx", "n_ctx", type=click.IntRange(LEAST_WINDOW), default=DEFAULT_WINDOW, show_default=True,
                 metavar="N", help="Tokens of a window; each is read without those before."),
    click.option("--chunks", "n_windows", type=click.IntRange(1), metavar="N",
                 help="Read the first N windows only.  [default: all]"),
    threads_option,
    activations_option,
    click.option("--parse-special", is_flag=True,
                 help="Take <|im_end|> and the like in the text for control tokens."),
]  # fmt: skip


def window_options(command: Command) -> Command:
    """Give a command -f, -c, --chunks, -t, --activations and --parse-special; -c, -t and --activations as `runtime`."""
    command = as_runtime(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_text(path: Path) -> str:
    """A text file, exactly as it is. Raises FormatError for one that is not UTF-8."""
    return decoded(path.read_bytes(), path)


def decoded(raw: bytes, path: Path) -> str:
    """The text of a file. Raises FormatError for one that is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        raise FormatError(
            f"{path} is not UTF-8 text: byte 0x{raw[problem.start]:02x} at {problem.start}; convert it first"
        ) from None


def tokens_of(model: Model, text: str, parse_special: bool) -> list[int]:
    """The ids of a whole text, as `edgellm.evaluate.windows` divides them."""
    return model.tokenize(text, add_special=True, parse_special=parse_special)


def shown(progress: Progress, digits: int = 0) -> Callable[[int, int, float | None], None]:
    """Windows done and windows in all, with a value so far, as a line that also tells the time left."""
    begun = time.monotonic()

    def show(done: int, total: int, value: float | None = None) -> None:
        words = [] if value is None else [f"{value:.{digits}f}"]
        if done:
            words.append(f"{(time.monotonic() - begun) * (total - done) / done:.0f} s left")
        progress(done, total, ", ".join(words) or "starting")

    return show
