"""edgellm train"""

from __future__ import annotations

import click

from edgellm.cli.lazy import LazyGroup

# Each command lives in the module of its name, in this folder.
COMMANDS = {
    "lora": "Teach a model new things by small weights beside its own: LoRA, or another --method.",
    "full": "Train all weights of a model, for one that fits into memory: 16 bytes for every weight.",
    "new": "Train a model from nothing: its shape, tokenizer and weights.",
    "plan": "Say what size, text and time go together.",
    "dpo": "Teach a model which of two answers is better (direct preference optimization).",
    "kto": "Teach a model from answers that are good or not, without pairs (Kahneman-Tversky optimization).",
    "orpo": "Teach a model to answer and to prefer at once (odds ratio preference optimization).",
    "reward": "Teach a model to say how good an answer is (a reward model).",
    "grpo": "Teach a model by rewards for its own answers (group relative policy optimization).",
    "ppo": "Teach a model by rewards for its own answers (proximal policy optimization).",
    "preview": "Show examples as a model would see them, and what it would learn of them.",
}


@click.group("train", cls=LazyGroup, package="edgellm.cli.train", texts=COMMANDS)
def command() -> None:
    """Teach a model, or see what it would learn from."""
