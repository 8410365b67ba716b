from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from edgellm.errors import UsageError
from edgellm.train.new.shape import ShapeSettings


@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_weights_is_that_of_transformers(tied: bool) -> None:
    shape = ShapeSettings(3, 96, n_heads=6, n_kv_heads=2, n_ff=100, tied_embeddings=tied).shape()
    config = LlamaConfig(
        vocab_size=300, hidden_size=96, intermediate_size=100, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    assert shape.n_parameters(300) == LlamaForCausalLM(config).num_parameters()


def test_usual_numbers() -> None:
    shape = ShapeSettings(n_embd=192).shape()
    assert (shape.n_heads, shape.n_kv_heads, shape.n_ff) == (6, 6, 512)
    assert ShapeSettings(n_embd=70).shape().n_heads == 1
    assert ShapeSettings(n_embd=144).shape().n_heads == 4
    for n_embd in range(2, 400, 2):
        found = ShapeSettings(n_embd=n_embd).shape()
        assert n_embd % (2 * found.n_heads) == 0 and found.n_ff % 32 == 0 and found.n_ff * 3 >= n_embd * 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layers": 0}, "n_layers is 0; expected a number of at least 1"),
        ({"n_layers": 5000}, "n_layers is 5000; expected a number up to 4096"),
        ({"n_layers": "6"}, "n_layers is '6'; expected a whole number"),
        ({"n_embd": 63}, "n_embd is 63; expected an even number"),
        ({"n_heads": 5}, "n_heads is 5; expected a number that cuts n_embd 192 into heads of an even width, such as 6"),
        ({"n_embd": 6, "n_heads": 2}, "n_heads is 2; expected a number that cuts n_embd 6 into heads of an even width"),
        ({"n_kv_heads": 4}, "n_kv_heads is 4; expected a number that divides n_heads 6"),
        ({"n_heads": 0}, "n_heads is 0; expected a number of at least 1"),
        ({"n_ctx": 1}, "n_ctx is 1; expected a number of at least 2"),
        ({"rope_base": 0}, "rope_base is 0.0; expected a number above 0"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon is nan; expected a finite number"),
        ({"tied_embeddings": 1}, "tied_embeddings is 1; expected True or False"),
    ],
)
def test_shapes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ShapeSettings(**settings).shape()
    assert str(caught.value).startswith(message)
