"""The settings of a new model as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.train.new.config import DEFAULTS, NewConfig
from edgellm.train.settings import write_settings

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def read(tmp_path: Path, text: str) -> NewConfig:
    path = tmp_path / "new.yaml"
    path.write_text(text, encoding="utf-8")
    return NewConfig.read(path)


def test_what_is_left_out_is_as_usual(tmp_path: Path) -> None:
    config = read(tmp_path, "n_embd: 64\nlearning_rate: 3e-4\nn_heads:\n")
    assert config.shape.n_embd == 64 and config.shape.n_heads == 2 and config.shape.n_ctx == 256
    assert config.tokenizer.tokenizer == "bpe" and config.tokenizer.pre == "gpt-2"
    assert config.training.learning_rate == 3e-4
    assert config.training.weight_decay == DEFAULTS["weight_decay"] == 0.1
    assert NewConfig.of({}) == NewConfig()


def test_experts_are_trained_with_a_loss_of_routers(tmp_path: Path) -> None:
    assert NewConfig().router.router_aux_loss_coef is None
    assert read(tmp_path, "n_experts: 4").router.router_aux_loss_coef == 0.01
    config = read(tmp_path, "n_experts: 4\nn_experts_used: 1\nn_expert_ff: 32\nrouter_aux_loss_coef: 0\ndata: a.txt")
    assert config.router.router_aux_loss_coef == 0 and config.shape.n_experts == 4 and config.shape.n_ff is None
    write_settings(tmp_path / "out.yaml", config.settings())
    assert NewConfig.read(tmp_path / "out.yaml") == config


def test_json_is_yaml_too(tmp_path: Path) -> None:
    config = read(tmp_path, '{"n_embd": 64, "special_tokens": ["<a>"], "data": "text.txt"}')
    assert config.shape.n_embd == 64 and config.tokenizer.special_tokens == ("<a>",) and config.data == ("text.txt",)


def test_what_is_in_effect_can_be_read_again(tmp_path: Path) -> None:
    template = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    settings = {"n_embd": 96, "data": ["a.txt", "b c.txt"], "chat_template": template, "special_tokens": ["<|a|>"]}
    config = NewConfig.of(settings)
    write_settings(tmp_path / "out.yaml", config.settings())
    assert NewConfig.read(tmp_path / "out.yaml") == config


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_configs_of_the_size_that_they_say(path: Path) -> None:
    config = NewConfig.read(path)
    n_vocab = 257 if config.tokenizer.tokenizer == "bytes" else config.tokenizer.n_vocab
    millions = config.shape.n_parameters(n_vocab) / 1e6
    assert f"A model of {millions:.1f} million weights" in path.read_text("utf-8")


def test_there_are_examples() -> None:
    assert [path.stem for path in EXAMPLES if path.stem in ("characters", "shakespeare")] == [
        "characters",
        "shakespeare",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layer: 4", "line 1: 'n_layer' is no setting; did you mean n_layers?"),
        ("n_embd: 64\nn_embd: 64", "line 2: n_embd stands there twice"),
        ("n_embd: 64\nn_ctx: many", "line 2: n_ctx is 'many'; expected a whole number"),
        ("n_embd: 64\nn_heads: 5", "n_heads is 5; expected a number that cuts n_embd 64 into heads of an even width"),
        ("n_expert: 4", "line 1: 'n_expert' is no setting; did you mean n_experts?"),
        ("n_experts: 2\nn_experts_used: 4", "n_experts_used is 4; expected a number up to n_experts 2"),
        ("router_aux_loss_coef: 0.1", "router_aux_loss_coef is 0.1, and the model has no experts; expected n_experts"),
        ("router_aux_loss_coef: -1", "line 1: router_aux_loss_coef is -1.0; expected a number of at least 0"),
        ("model: smollm2-135m", "'model' is no setting of a new model; there are n_layers, "),
        ("separator: '  '", "line 1: separator is ' '; expected a text that is not only white space"),
        ("tokenizer: unigram", "line 1: tokenizer is 'unigram'; expected one of bpe, sentencepiece, bytes"),
    ],
)
def test_settings_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "new.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "just words", "shape: {n_embd: 64}"])
def test_files_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, UsageError), match=r"new\.yaml"):
        read(tmp_path, text)
    with pytest.raises(FileProblem, match=r"nowhere\.yaml cannot be read"):
        NewConfig.read(tmp_path / "nowhere.yaml")


def test_names_that_are_none_are_refused_from_python_too() -> None:
    with pytest.raises(UsageError, match="'n_layer' is no setting of a new model; there are n_layers, "):
        NewConfig.of({"n_layer": 4})
