"""Configurations that coding agents and editors need to use a server of this machine, and how to take them back."""

from edgellm.server.launch.programs import PROGRAMS, Program, Served
from edgellm.server.launch.writing import Written, undo, write

__all__ = ["PROGRAMS", "Program", "Served", "Written", "undo", "write"]
