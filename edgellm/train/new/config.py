"""What `edgellm train new` is asked for, as one YAML file of `name: value` lines.

n_layers, n_embd, ...       the shape: `shape.ShapeSettings`
router_aux_loss_coef        of experts: `RouterSettings`
tokenizer, n_vocab, ...     `vocabulary.TokenizerSettings`
separator                   between documents: `DataSettings`
learning_rate, steps, ...   how it learns: `edgellm.train.config.TrainConfig`
threads, tensorboard        `edgellm.train.config.MachineConfig`
data                        the files
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgellm.checks import number, take, text, wrong
from edgellm.errors import UsageError, shown
from edgellm.train.config import MachineConfig, TrainConfig
from edgellm.train.new.defaults import DEFAULTS
from edgellm.train.new.shape import Shape, ShapeSettings
from edgellm.train.new.vocabulary import END, TokenizerSettings
from edgellm.train.settings import as_settings, made, read_settings

USUAL_COEFFICIENT = 0.01  # of Fedus et al. (2021)


@dataclass(frozen=True)
class DataSettings:
    """How files become documents. separator: stands between those of a file; line breaks around it belong to none."""

    separator: str = END

    def __post_init__(self) -> None:
        take(self, "separator", _separator)


@dataclass(frozen=True)
class RouterSettings:
    """How routers are trained.

    router_aux_loss_coef:  by what the loss of routers is multiplied before it is added to that of the text; 0 leaves
                           it out, and usual is 0.01. None is that of a model without experts.
    """

    router_aux_loss_coef: float | None = None

    def __post_init__(self) -> None:
        take(self, "router_aux_loss_coef", number, 0, optional=True)


KINDS = (ShapeSettings, RouterSettings, TokenizerSettings, DataSettings, TrainConfig, MachineConfig)


@dataclass(frozen=True)
class NewConfig:
    """All settings of a new model. data: files of text, or folders with .txt files."""

    shape: Shape = field(default_factory=lambda: ShapeSettings().shape())
    router: RouterSettings = field(default_factory=RouterSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    documents: DataSettings = field(default_factory=DataSettings)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(**DEFAULTS))
    data: tuple[str, ...] = ()
    machine: MachineConfig = field(default_factory=MachineConfig)

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
        shape = made(ShapeSettings, all_settings).shape()
        return cls(
            shape,
            _router(made(RouterSettings, all_settings), shape),
            made(TokenizerSettings, all_settings),
            made(DataSettings, all_settings),
            made(TrainConfig, all_settings),
            tuple(settings.get("data", ())),
            made(MachineConfig, all_settings),
        )

    @classmethod
    def read(cls, path: Path, more: Mapping[str, Any] | None = None) -> NewConfig:
        """From a file; `more` are settings that come before those of the file.

        Raises FileProblem, FormatError or UsageError, each naming the file.
        """
        settings = read_settings(path, KINDS, has_files=False) | dict(more or {})
        try:
            return cls.of(settings)
        except UsageError as problem:
            is_typed = problem.parameter in (more or {})
            raise UsageError(f"{path}: {problem}", parameter=problem.parameter, is_of_file=not is_typed) from None

    def settings(self) -> dict[str, Any]:
        """All that is in effect, by name, as `read` takes it."""
        found = as_settings(self.shape, self.router, self.tokenizer, self.documents, self.training)
        machine = {name: value for name, value in as_settings(self.machine).items() if value is not None}
        return found | machine | {"data": list(self.data)}


def _router(router: RouterSettings, shape: Shape) -> RouterSettings:
    """With what is usual for the shape in place of None."""
    name, given = "router_aux_loss_coef", router.router_aux_loss_coef
    if given is not None and shape.n_experts is None:
        raise UsageError(f"{name} is {given:g}, and the model has no experts; expected n_experts too", parameter=name)
    return RouterSettings(USUAL_COEFFICIENT) if given is None and shape.n_experts else router


def _separator(name: str, value: Any) -> str:
    found = text(name, value)
    if not found.strip():
        raise wrong(name, value, "a text that is not only white space")
    return found
