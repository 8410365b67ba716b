"""Calls of tools as the templates of models write them.

    template ──► renderings of made-up calls, compared ──► CallSyntax ──► a grammar for the model
                 (`derive.py`)                             (`syntax.py`)  and a parser of its answers

Nothing is known of any model by name. Where a template knows no tools, they are told in plain text (`plain.py`).
"""

from edgellm.text.calls.derive import derived_syntax
from edgellm.text.calls.syntax import Call, CallSyntax

__all__ = ["Call", "CallSyntax", "derived_syntax"]
