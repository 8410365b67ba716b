"""Every error that edgellm raises on purpose.

    EdgellmError                    one clear line: what was found, what was expected, what to do
    ├── UsageError                  a parameter or option that cannot work
    ├── FileProblem                 a file that cannot be used
    │   ├── FormatError             its bytes break the format's rules
    │   └── UnsupportedError        it is well-formed, but needs something edgellm does not have
    ├── TemplateError               a chat template that is malformed, hostile or refuses the messages
    ├── MemoryLimitError            the work would not fit into this machine's memory
    ├── ContextOverflowError        more tokens than the context holds
    ├── KernelError                 a kernel cannot be compiled or loaded on this machine
    └── DownloadError               a model cannot be fetched
        └── HashMismatchError       what arrived is not what the catalogue names

Types decide exit codes, not texts: each class carries its `exit_code`.
"""


class EdgellmError(Exception):
    """Base of all errors of this package; `str(error)` is one line for people."""

    exit_code = 1


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


class KernelError(EdgellmError):
    """A kernel cannot be compiled or loaded on this machine."""


class DownloadError(EdgellmError):
    """A model cannot be fetched from any of its sources."""


class HashMismatchError(DownloadError):
    """What arrived is not what the catalogue names."""


def size_text(n_bytes: float) -> str:
    """Bytes as messages name them, in decimal units: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
