"""`python -m edgellm` is the `edgellm` command."""

import sys

from edgellm.cli import program

sys.exit(program())
