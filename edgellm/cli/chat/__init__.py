"""The chat of `edgellm run`.

session       the loop: read, run a command or answer, and again
commands      what begins with a slash
settings      what /set changes
reader        reading a message, a line at a time; editor is the same with prompt_toolkit
window        what of a long conversation the model reads
attached      files that go with the next message
kept          conversations on the disk; history is what was typed
"""

from edgellm.cli.chat.session import Chat
from edgellm.cli.chat.settings import changed

__all__ = ["Chat", "changed"]
