"""Every error that edgellm raises on purpose.

    EdgellmError                    one clear line: what was found, what was expected, what to do
    ├── UsageError                  a parameter or option that cannot work
    ├── FileProblem                 a file that cannot be used
    │   ├── FormatError             its bytes break the format's rules
    │   └── UnsupportedError        it is well-formed, but needs something edgellm does not have
    ├── TemplateError               a chat template that is malformed, hostile or refuses the messages
    ├── MemoryLimitError            the work would not fit into this machine's memory
    ├── ContextOverflowError        more tokens than the context holds
    ├── BusyError                   others use the model in a way that must not be mixed with this
    ├── CacheFullError              no block of the KV cache is free
    ├── TrainingError               a training run that cannot go on
    │   └── RewardError             whoever judges answers gives no rewards
    ├── KernelError                 a kernel cannot be compiled or loaded on this machine
    └── DownloadError               a model cannot be fetched
        └── HashMismatchError       what arrived is not what the catalogue names

Types decide exit codes, not texts: each class carries its `exit_code`. An error about one parameter carries the name
of it, `parameter`, as the Python interface spells it and as the text does, so that a command line can say its own.
"""

from __future__ import annotations


class EdgellmError(Exception):
    """Base of all errors of this package; `str(error)` is one line for people.

    parameter:  the parameter that is to be changed, by its name in Python, where there is one.
    is_of_file: whether the text is about a file of settings, where names are spelled as in Python.
    """

    exit_code = 1
    parameter: str | None = None
    is_of_file = False

    def __init__(self, *text: object, parameter: str | None = None, is_of_file: bool = False) -> None:
        super().__init__(*text)
        self.is_of_file = is_of_file
        if parameter is not None:
            self.parameter = parameter


class UsageError(EdgellmError, ValueError):
    """A parameter or option that cannot work."""

    exit_code = 2


class FileProblem(EdgellmError):
    """A file that cannot be used: missing, unreadable, malformed or unsupported."""


class FormatError(FileProblem):
    """The bytes of a file break the rules of its format."""


class UnsupportedError(FileProblem):
    """A well-formed file needs an architecture, type, scaling or tokenizer that edgellm lacks."""


class TemplateError(EdgellmError):
    """A chat template is malformed, does something it must not, or refuses the messages."""


class MemoryLimitError(EdgellmError):
    """The work would not fit into this machine's memory."""


class ContextOverflowError(EdgellmError):
    """More tokens than the context holds."""


class BusyError(EdgellmError):
    """Others use the model, in a way that does not allow for this at the same time."""


class CacheFullError(EdgellmError):
    """No block of the KV cache is free; generations wait for one, so only who uses the cache directly sees this."""


class TrainingError(EdgellmError):
    """A training run cannot go on, for instance because its loss is no number any more."""


class RewardError(TrainingError):
    """A reward function raised, or gave something else than a number for each answer."""


class KernelError(EdgellmError):
    """A kernel cannot be compiled or loaded on this machine."""


class DownloadError(EdgellmError):
    """A model cannot be fetched from any of its sources."""


class HashMismatchError(DownloadError):
    """What arrived is not what the catalogue names."""


def counted(n: int, noun: str) -> str:
    """A number of things: "1 turn", "2 turns"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def size_text(n_bytes: float) -> str:
    """Bytes as messages name them, in decimal units: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def shown(value: object, most: int = 60) -> str:
    """A value that somebody gave, for an error's text: in one line of at most so many characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an object's own code, or a number of more digits than Python prints
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."
