from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from edgellm.errors import UsageError
from edgellm.train.new.shape import ShapeSettings


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_experts_are_counted_as_in_transformers(tied: bool) -> None:
    shape = ShapeSettings(
        3, 96, n_heads=6, n_kv_heads=2, tied_embeddings=tied, n_experts=5, n_experts_used=3, n_expert_ff=40
    ).shape()
    config = MixtralConfig(
        vocab_size=300, hidden_size=96, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=None, tie_word_embeddings=tied, num_local_experts=5, num_experts_per_tok=3,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    assert shape.n_parameters(300) == model.num_parameters()
    experts = sum(x.numel() for name, x in model.named_parameters() if ".experts." in name)
    assert shape.n_active_parameters(300) == shape.n_parameters(300) - experts * 2 // 5


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
    assert shape.n_experts is None and shape.n_active_parameters(300) == shape.n_parameters(300)
    mixture = ShapeSettings(n_embd=192, n_experts=8).shape()
    assert (mixture.n_experts_used, mixture.n_expert_ff, mixture.n_ff) == (2, 256, None)
    assert ShapeSettings(n_experts=1).shape().n_experts_used == 1
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
        ({"rope_base": 0.5}, "rope_base is 0.5; expected a number of at least 1"),
        ({"rope_base": 1e300}, "rope_base is 1e+300; expected a number above 0, up to 1e+12"),
        ({"norm_epsilon": 1e300}, "norm_epsilon is 1e+300; expected a number above 0, up to 1"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon is nan; expected a finite number"),
        ({"n_experts": 0}, "n_experts is 0; expected a number of at least 1"),
        ({"n_experts": 5000}, "n_experts is 5000; expected a number up to 4096"),
        ({"n_experts": 4, "n_experts_used": 5}, "n_experts_used is 5; expected a number up to n_experts 4"),
        ({"n_experts": 4, "n_experts_used": 0}, "n_experts_used is 0; expected a number of at least 1"),
        ({"n_experts": 4, "n_expert_ff": 0}, "n_expert_ff is 0; expected a number of at least 1"),
        ({"n_experts": 4, "n_ff": 64}, "n_ff is 64 and stands beside n_experts; expected n_expert_ff, the columns of"),
        ({"n_experts_used": 2}, "n_experts_used is 2 and stands without n_experts; expected how many experts there"),
        ({"n_expert_ff": 64}, "n_expert_ff is 64 and stands without n_experts; expected how many experts there are"),
        ({"tied_embeddings": 1}, "tied_embeddings is 1; expected True or False"),
    ],
)
def test_shapes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ShapeSettings(**settings).shape()
    assert str(caught.value).startswith(message)
