"""How training data is read: the settings that people give, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm import checks
from edgellm.errors import UsageError

TRAIN_ON = ("answers", "last", "all")
LONG = ("cut", "drop")
RENDERED = ("messages", "tools", "add_generation_prompt", "self")  # what a template is given anyway
LEAST_LENGTH = 2  # a token to read and one to learn


@dataclass(frozen=True)
class DataConfig:
    """What is learnt of each example, and what becomes of those that do not fit.

    max_length:  most tokens of a document.
    train_on:    "answers" learns what the model has to say in a chat, "last" only its last answer, "all" every token.
                 Texts are learnt whole, and pairs of answers by their answers, whatever stands here.
    long:        "cut" keeps the beginning of a longer document, "drop" leaves the example out.
    skip_bad:    whether lines that cannot be used are counted and left out; else the first is an error.
    template_variables:  what the chat template is told beside the messages, such as {"enable_thinking": False}.
    """

    max_length: int = 1024
    train_on: str = "answers"
    long: str = "cut"
    skip_bad: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.whole_number("max_length", self.max_length, LEAST_LENGTH)
        checks.one_of("train_on", self.train_on, TRAIN_ON)
        checks.one_of("long", self.long, LONG)
        checks.flag("skip_bad", self.skip_bad)
        variables = self.template_variables
        if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
            raise checks.wrong("template_variables", variables, "a dict of values by name")
        if taken := [name for name in RENDERED if name in variables]:
            raise UsageError(
                f"template_variables holds {taken[0]!r}, which the template is given anyway; leave it out",
                parameter="template_variables",
            )
