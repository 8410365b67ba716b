"""edgellm train lora"""

from __future__ import annotations

from typing import Any

import click

from edgellm.cli.train.training import Training, training_options
from edgellm.errors import UsageError


@click.command("lora")
@training_options("lora")
@click.option("--dora", "dora", is_flag=True, default=None, help="The same as --method dora.")
def command(training: Training, dora: bool | None) -> None:
    """Teach a model new things by small weights beside its own: LoRA, or another --method.

    The model's file stays as it is, quantized or not. The adapter in DIR is PEFT's, and of use at once:

    \b
      edgellm train lora smollm2-135m --data facts.jsonl -o facts
      edgellm run smollm2-135m --lora facts

    Ctrl-C saves a checkpoint, from which --resume goes on: edgellm train lora --resume -o facts.
    """
    training.typed |= _method(dora, training.typed["method"])
    training.go()


def _method(dora: bool | None, method: str | None) -> dict[str, Any]:
    if not dora:
        return {}
    if method not in (None, "dora"):
        raise UsageError(f"--dora is --method dora, and --method {method} was typed too; choose one")
    return {"method": "dora"}
