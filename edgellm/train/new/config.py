"""What `edgellm train new` is asked for, as one YAML file of `name: value` lines.

n_layers, n_embd, ...       the shape: `shape.ShapeSettings`
tokenizer, n_vocab, ...     `vocabulary.TokenizerSettings`
separator                   between documents: `DataSettings`
learning_rate, steps, ...   how it learns: `edgellm.train.config.TrainConfig`
data                        the files
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgellm.checks import take, text, wrong
from edgellm.errors import UsageError, shown
from edgellm.train.config import TrainConfig
from edgellm.train.new.shape import Shape, ShapeSettings
from edgellm.train.new.vocabulary import END, TokenizerSettings
from edgellm.train.settings import as_settings, made, read_settings

# What suits a model that begins with random weights, where it differs from one that is taught a little more: GPT-3's
# (Brown et al., 2020) averages and decay, and the learning rate of its smallest models.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 16,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "validation": 0.05,
}


@dataclass(frozen=True)
class DataSettings:
    """How files become documents. separator: stands between those of a file; line breaks around it belong to none."""

    separator: str = END

    def __post_init__(self) -> None:
        take(self, "separator", _separator)


KINDS = (ShapeSettings, TokenizerSettings, DataSettings, TrainConfig)


@dataclass(frozen=True)
class NewConfig:
    """All settings of a new model. data: files of text, or folders with .txt files."""

    shape: Shape = field(default_factory=lambda: ShapeSettings().shape())
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    documents: DataSettings = field(default_factory=DataSettings)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(**DEFAULTS))
    data: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> NewConfig:
        """From settings by name; those that are not there are as usual.

        Raises UsageError for a name that is no setting of a new model, and values that cannot be.
        """
        known = [field.name for kind in KINDS for field in fields(kind)] + ["data"]
        for name in settings:
            if name not in known:
                raise UsageError(f"{shown(name)} is no setting of a new model; there are {', '.join(known)}")
        all_settings = DEFAULTS | dict(settings)
        return cls(
            made(ShapeSettings, all_settings).shape(),
            made(TokenizerSettings, all_settings),
            made(DataSettings, all_settings),
            made(TrainConfig, all_settings),
            tuple(settings.get("data", ())),
        )

    @classmethod
    def read(cls, path: Path) -> NewConfig:
        """From a file. Raises FileProblem, FormatError or UsageError, each naming it."""
        settings = read_settings(path, KINDS)
        try:
            return cls.of(settings)
        except UsageError as problem:
            raise UsageError(f"{path}: {problem}") from None

    def settings(self) -> dict[str, Any]:
        """All that is in effect, by name, as `read` takes it."""
        return as_settings(self.shape, self.tokenizer, self.documents, self.training) | {"data": list(self.data)}


def _separator(name: str, value: Any) -> str:
    found = text(name, value)
    if not found.strip():
        raise wrong(name, value, "a text that is not only white space")
    return found
