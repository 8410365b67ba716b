"""edgellm train"""

from __future__ import annotations

import click

from edgellm.cli.lazy import LazyGroup

# Each command lives in the module of its name, in this folder.
COMMANDS = {
    "lora": "Teach a model new things by small weights beside its own (LoRA).",
    "new": "Train a model from nothing: its shape, tokenizer and weights.",
    "plan": "Say what size, text and time go together.",
    "preview": "Show examples as a model would see them, and what it would learn of them.",
}


@click.group("train", cls=LazyGroup, package="edgellm.cli.train", texts=COMMANDS)
def command() -> None:
    """Teach a model, or see what it would learn from."""
