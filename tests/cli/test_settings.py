"""What /set and /show say of the settings of sampling and of adapters, and how errors name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.cli.chat import Chat, changed, commands, settings
from edgellm.cli.chat.settings import Behaviour
from edgellm.cli.options import as_typed
from edgellm.cli.run import command
from edgellm.errors import UsageError
from edgellm.params import SamplingParams
from tests.cli.fake_engine import FakeModel


def shown(sampling: SamplingParams) -> dict[str, str]:
    return dict(line.strip().split(": ", 1) for line in settings.lines(sampling, Behaviour()).splitlines())


def test_what_is_not_as_by_default_is_shown_beside_what_people_change_most() -> None:
    usual = shown(SamplingParams())
    assert list(usual) == [*settings.COMMON, *settings.WORDS]
    assert usual["seed"] == "none" and usual["markdown"] == "on"
    sampling = SamplingParams()
    for name, value in (("stop", '["a\\n", "b"]'), ("dry-multiplier", "2"), ("logit-bias", "5+1"), ("top_k", "3")):
        sampling = changed(sampling, name, value)
    found = shown(sampling)
    assert set(found) - set(usual) == {"stop", "dry_multiplier", "logit_bias"}
    assert (found["stop"], found["dry_multiplier"], found["top_k"]) == (r"'a\n', 'b'", "2.0", "3")


def test_every_setting_is_offered() -> None:
    words = {word for _, word, _ in commands.completions("/set ")}
    assert {"banned_strings", "dry_multiplier", "samplers", "when_full"} <= words and "logprobs" not in words


def test_thoughts_are_turned_on_and_off() -> None:
    model = FakeModel(Path("some.gguf"), None, None)
    chat = Chat(model, SamplingParams())  # type: ignore[arg-type]
    chat.set("think", "off")
    assert chat._asker.think is False and "  think: off" in settings.lines(chat.sampling, chat.behaviour)
    with pytest.raises(UsageError, match="think cannot be on: this model's chat template knows of no thoughts"):
        chat.set("think", "on")
    assert chat.behaviour.think is False
    chat.set("think", "auto")
    assert chat._asker._wishes == {} and "  think: auto" in settings.lines(chat.sampling, chat.behaviour)
    with pytest.raises(UsageError, match="expected one of on, off, auto"):
        chat.set("think", "much")


def test_show_names_the_adapters_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(Path("some.gguf"), None, None)
    chat = Chat(model, SamplingParams())  # type: ignore[arg-type]
    commands.run(chat, "/show")
    assert "adapters" not in capsys.readouterr().err
    model.adapters = {"facts": 1.0, "unused": 0.0, "./style": 0.5}
    commands.run(chat, "/show")
    assert "\n  adapters: 1 x facts, 0.5 x ./style\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parameter", "line"),
    [
        ("samplers holds 'x'; expected top_k, min_p", "samplers", "--samplers holds 'x'; expected top_k, min_p"),
        ("top_k is 'x'; expected a number", "top_k", "--top-k is 'x'; expected a number"),
        ("n_ctx is 5; with a dry_base of 2", "n_ctx", "-c/--ctx is 5; with a --dry-base of 2"),
        ("response_format.type is 'x'", "response_format", "--json-schema.type is 'x'"),
        ("template.jinja has no end", "template", "template.jinja has no end"),
    ],
)
def test_steps_of_sampling_are_no_options(text: str, parameter: str, line: str) -> None:
    assert as_typed(UsageError(text, parameter=parameter), command.params) == line


@pytest.mark.parametrize(
    "text", ["n_ctx.json, line 1: x", "a/n_ctx: x", "n_ctx/a.txt: x", "my-n_ctx: x", "C:\\n_ctx: x", "n_ctx, line 2: x"]
)
def test_a_path_stays_as_it_is(text: str) -> None:
    assert as_typed(UsageError(f"{text}; dry_base is 2"), command.params) == f"{text}; --dry-base is 2"


def test_names_in_a_file_of_settings_stay_as_they_are() -> None:
    text = "my.yaml, line 3: top_k is 'x'; expected a number"
    assert as_typed(UsageError(text, is_of_file=True), command.params) == text
