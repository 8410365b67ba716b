"""edgellm train lora"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Training, training_options


@click.command("lora")
@training_options("lora")
def command(training: Training) -> None:
    """Teach a model new things by small weights beside its own: LoRA, or another --method.

    The model's file stays as it is, quantized or not. The adapter in DIR is PEFT's, and of use at once:

    \b
      edgellm train lora smollm2-135m --data facts.jsonl -o facts
      edgellm run smollm2-135m --lora facts

    Ctrl-C saves a checkpoint, from which --resume goes on: edgellm train lora --resume -o facts.
    """
    training.go()
