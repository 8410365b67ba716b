"""The `edgellm` command: one file per command, imported when called. Only this floor prints or exits."""

from edgellm.cli.app import main, program

__all__ = ["main", "program"]
