"""Learnt tokens and bottlenecks: losses and gradients beside peft's and torch's, on the same weights in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.engine.drawing import Drawn, draw
from edgellm.engine.gradients import most_blocks
from edgellm.errors import UsageError
from edgellm.kernels.records import KV_BLOCK
from edgellm.train.config import LoraConfig
from edgellm.train.documents import Documents
from edgellm.train.methods import AdapterLearner, adapter_learner
from edgellm.train.virtual import DOCUMENTS_TOGETHER, room_for
from tests.arch.tiny import _paired
from tests.convert import checkpoints
from tests.engine.test_virtual_tokens import with_hooks

from .test_lora import documents

# PEFT hands transformers its prefix under a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

LOSS, GRADIENT = 1e-5, 1e-4  # as in test_lora
N, WIDTH = 6, 24
Modules = dict[str, torch.Tensor]


def peer_of(model: Any, config: LoraConfig) -> Any:
    """The same kind in peft."""
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": N}
    model.set_attn_implementation("sdpa")
    if config.method == "prompt":
        return peft.get_peft_model(model, peft.PromptTuningConfig(**common))
    if config.method == "p-tuning":
        return peft.get_peft_model(model, peft.PromptEncoderConfig(**common, encoder_hidden_size=WIDTH))
    projected = {"prefix_projection": True, "encoder_hidden_size": WIDTH} if config.encoder_width else {}
    return peft.get_peft_model(model, peft.PrefixTuningConfig(**common, **projected))


class Columns:
    """Which column of peft's table is each of ours, and whose it is."""

    def __init__(self, family: str, learner: AdapterLearner, shape: Any) -> None:
        width = shape.num_key_value_heads * shape.head_dim
        keys = np.arange(width)
        if family.startswith(("llama", "mistral")):
            keys = _paired(keys.reshape(-1, 1), shape.num_key_value_heads)[:, 0]
        parts = [part for layer in range(shape.num_hidden_layers)
                 for part in (2 * layer * width + keys, (2 * layer + 1) * width + np.arange(width))]  # fmt: skip
        self.of_all = np.concatenate(parts)
        self.parts = parts


def pairs_of(family: str, learner: AdapterLearner, peer: Any) -> list[tuple[str, torch.nn.Parameter, Any]]:
    """Our parameters by name, peft's, and how rows or columns of theirs are ours."""
    weights = {name.split("default.")[-1]: x for name, x in peer.named_parameters() if x.requires_grad}
    order = Columns(family, learner, peer.base_model.config) if learner.config.method == "prefix" else None
    found = []
    for name in learner.parameters:
        if not name.startswith("encoder"):
            columns = slice(None) if order is None else order.parts[list(learner.parameters).index(name)]
            found.append((name, weights["embedding.weight"], (slice(None), columns)))
            continue
        _, layer, *kind = name.split(".")
        theirs = "embedding.weight" if not kind else None
        stem = "transform" if order is not None else "mlp_head"
        theirs = theirs or f"{stem}.{2 * int(layer)}.{kind[0]}"
        is_last = order is not None and layer == "1"
        found.append((name, weights[theirs], order.of_all if is_last and order is not None else slice(None)))
    return found


def losses_of(peer: Any, texts: Documents) -> torch.Tensor:
    """float32 of every target."""
    found = []
    for start, length in zip(texts.starts, texts.lengths, strict=True):
        ids, targets = (torch.from_numpy(x[start : start + length]).long() for x in (texts.ids, texts.targets))
        logits = peer(input_ids=ids[None]).logits[0, -length:]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
        found.append(losses[targets >= 0])
    return torch.cat(found)


def learner_of(model: edgellm.Model, config: LoraConfig, **options: Any) -> AdapterLearner:
    """Weights of one size, so that each has a part in the loss."""
    learner = adapter_learner(model, config, n_batch=160, seed=5, **options)
    random = np.random.default_rng(6)
    for values in learner.parameters.values():
        values[...] = random.normal(0, 0.3, values.shape)
    return learner


CONFIGS = {
    "prompt": LoraConfig(method="prompt", virtual_tokens=N),
    "p-tuning": LoraConfig(method="p-tuning", virtual_tokens=N, encoder_width=WIDTH),
    "prefix": LoraConfig(method="prefix", virtual_tokens=N),
    "prefix, projected": LoraConfig(method="prefix", virtual_tokens=N, encoder_width=WIDTH),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3"])
def test_losses_and_gradients_are_those_of_peft(family: str, kind: str, recompute: bool, tmp_path: Path) -> None:
    base = checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    texts = documents()
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, CONFIGS[kind], recompute=recompute)
        try:
            peer = peer_of(base, learner.config)
            pairs = pairs_of(family, learner, peer)
            with torch.no_grad():
                for name, theirs, places in pairs:
                    theirs[places] = torch.from_numpy(learner.parameters[name])
            expected = losses_of(peer, texts)
            np.testing.assert_allclose(learner.negative_log_likelihoods(texts), expected.detach(), atol=LOSS, rtol=LOSS)
            loss = (expected * torch.from_numpy(texts.weights[texts.targets >= 0])).sum()
            assert learner.loss_and_gradients(texts, 0.25) == pytest.approx(loss.item(), rel=LOSS)
            (0.25 * loss).backward()
            for name, theirs, places in pairs:
                assert theirs.grad is not None
                given, ours = theirs.grad.numpy()[places], learner.gradients[name]
                np.testing.assert_allclose(ours, given, rtol=0, atol=GRADIENT * np.abs(given).max(), err_msg=name)
        finally:
            learner.close()


@pytest.mark.parametrize("place", ["ffn", "both"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("family", ["llama, biases", "gemma3"])
def test_bottlenecks_are_those_of_torch(family: str, activation: Any, place: str, tmp_path: Path) -> None:
    base = checkpoints.save(family, tmp_path / "model").requires_grad_(False)
    base.set_attn_implementation("sdpa")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    texts = documents()
    config = LoraConfig(method="adapter", bottleneck=5, bottleneck_at=place, bottleneck_activation=activation)
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, config)
        try:
            parts = learner.adapter().bottlenecks
            weights: Modules = {}
            peer = with_hooks(base, parts, weights)
            expected = losses_of(peer, texts)
            np.testing.assert_allclose(learner.negative_log_likelihoods(texts), expected.detach(), atol=LOSS, rtol=LOSS)
            loss = (expected * torch.from_numpy(texts.weights[texts.targets >= 0])).sum()
            assert learner.loss_and_gradients(texts, 1.0) == pytest.approx(loss.item(), rel=LOSS)
            loss.backward()
            assert weights.keys() == learner.gradients.keys()
            for name, theirs in weights.items():
                assert theirs.grad is not None
                given = theirs.grad.numpy().T if name.endswith(".up") else theirs.grad.numpy()
                ours = learner.gradients[name]
                np.testing.assert_allclose(ours, given, rtol=0, atol=GRADIENT * np.abs(given).max(), err_msg=name)
        finally:
            learner.close()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pass_of_many_documents_is_that_of_few(kind: str, tmp_path: Path) -> None:
    """Virtual tokens of many short documents do not fit into one pass; losses by hand-made weights neither."""
    checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    random = np.random.default_rng(3)
    parts = [Documents.of(random.integers(2, checkpoints.N_VOCAB, 4), np.ones(4, bool)) for _ in range(40)]
    joined = Documents.joined(parts)
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, CONFIGS[kind])
        try:
            alone = sum(learner.loss_and_gradients(part, 1.0) for part in parts)
            expected = {name: gradient.copy() for name, gradient in learner.gradients.items()}
            for make in (
                lambda: learner.loss_and_gradients(joined, 1.0),
                lambda: float(learner.gradients_by(joined, np.ones_like).sum()),
            ):
                for gradient in learner.gradients.values():
                    gradient[...] = 0
                assert make() == pytest.approx(alone, rel=LOSS)
                for name, gradient in learner.gradients.items():
                    most = np.abs(expected[name]).max()
                    np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=GRADIENT * most, err_msg=name)
        finally:
            learner.close()


@pytest.mark.parametrize("kind", [*CONFIGS, "adapter"])
def test_a_loss_is_that_of_the_model_with_what_was_learnt(kind: str, tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    ids = np.random.default_rng(3).integers(2, checkpoints.N_VOCAB, 40)
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, CONFIGS.get(kind, LoraConfig(method="adapter", bottleneck=5)))
        losses = learner.negative_log_likelihoods(Documents.of(ids, np.ones(40, bool)))
        model.load_adapter(learner.adapter(), "learnt")
        learner.close()
        model.set_adapters("learnt")
        logits = model.logits(ids).astype(np.float64)
        found = np.log(np.exp(logits).sum(1))[:-1] - logits[np.arange(39), ids[1:]]
        np.testing.assert_allclose(losses, found, atol=LOSS, rtol=LOSS)
        drawn = Drawn(ids[:10].tolist(), 4, (), (1,), model._adapters.usual)
        draw(model._scheduler, [drawn])
        assert drawn.written == [*ids[:10], *drawn.answer] and len(drawn.answer) == 4


@pytest.mark.parametrize("kind", ["prompt", "prefix, projected"])
def test_hidden_states_and_their_gradients_are_those_of_the_documents(kind: str, tmp_path: Path) -> None:
    """By the gradient of hidden states, as by that of losses; what looks at several passes sees one."""
    checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    random = np.random.default_rng(3)
    parts = [Documents.of(random.integers(2, checkpoints.N_VOCAB, 4), np.ones(4, bool)) for _ in range(40)]
    joined = Documents.joined(parts)
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, CONFIGS[kind])
        try:
            hidden = learner.hidden(joined)
            np.testing.assert_array_equal(hidden, np.concatenate([learner.hidden(part) for part in parts]))
            seen: list[np.ndarray] = []
            learner.negative_log_likelihoods(joined, seen.append)
            learner.gradients_by(joined, np.zeros_like, seen.append)
            for shown in seen:
                np.testing.assert_array_equal(shown, hidden[joined.targets >= 0])
            direction = random.normal(size=hidden.shape).astype(np.float32)
            learner.gradients_by_hidden(joined, lambda found: direction)
            name, step = next(iter(learner.parameters)), 2e-3
            gradient = learner.gradients[name].copy()
            change = random.normal(size=gradient.shape).astype(np.float32)
            values = []
            for side in (step, -step):
                learner.parameters[name] += side * change
                values.append((learner.hidden(joined).astype(np.float64) * direction).sum())
                learner.parameters[name] -= side * change
            slope = (values[0] - values[1]) / (2 * step)
            assert (gradient * change).sum() == pytest.approx(slope, rel=0.02)
        finally:
            learner.close()


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_tokens_begin_with_what_was_asked_for(method: str, tmp_path: Path) -> None:
    checkpoints.save("gemma3", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    inits = {"prompt": ("random", "vocabulary", "text"), "prefix": ("random", "zero")}[method]
    with edgellm.load(tmp_path / "model.gguf", n_threads=1) as model:
        embeddings = model.run(list(range(checkpoints.N_VOCAB)), taps=["embd"])["embd"]
        for init in inits:
            text = "a b c" if init == "text" else ""
            config = LoraConfig(method=method, virtual_tokens=30, prompt_init=init, prompt_text=text)
            config.check()
            learner = adapter_learner(model, config, n_batch=16, seed=1)
            tables = [table.copy() for table in learner.parameters.values()]
            learner.close()
            for table in tables:
                if init == "random":
                    assert table.std() == pytest.approx(1, abs=0.1)
                elif init == "zero":
                    assert not table.any()
                elif init == "text":
                    ids = model.tokenize(text, add_special=True)
                    np.testing.assert_array_equal(table, embeddings[(ids * 30)[:30]])
                else:
                    assert all((row == embeddings).all(1).any() for row in table)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            LoraConfig(method="prefix", rank=4),
            "rank is 4, which method 'prefix' does not have; it has virtual_tokens",
        ),
        (LoraConfig(virtual_tokens=4), "virtual_tokens is 4, which method 'lora' does not have; it has rank, alpha"),
        (LoraConfig(method="adapter", dropout=0.1), r"dropout is 0\.1, which method 'adapter' does not have"),
        (
            LoraConfig(method="prompt", prompt_init="zero"),
            "prompt_init is 'zero'; method 'prompt' begins with random",
        ),
        (LoraConfig(method="prompt", prompt_init="text"), 'prompt_text and prompt_init "text" belong together'),
        (LoraConfig(method="prefix", prompt_init="zero", encoder_width=8), "a network makes the prefix; choose one"),
    ],
)
def test_settings_that_do_not_belong_together(config: LoraConfig, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        config.check()


def test_thousands_of_virtual_tokens_need_few_blocks() -> None:
    """A block for each token of a pass would be some of 100 GB for a small model."""
    for n in (1, 20, 256, 3000, 4096):
        room = 256 + room_for(n)
        assert most_blocks(room, n) <= max(room / KV_BLOCK + DOCUMENTS_TOGETHER + 256 / n, room // 2)
    assert [room_for(n) for n in (20, 256, 1000, 3000)] == [160, 2048, 2000, 3000]


@pytest.mark.parametrize("n_virtual", [0, 1, 20, 63, 64, 65, 300])
def test_no_documents_need_more_blocks_than_there_are(n_virtual: int) -> None:
    for room in (n_virtual + 1, 256 + n_virtual, 256 + 8 * n_virtual):
        for own in (1, 2, 30, 64, 65, 200):
            length = n_virtual + own
            lengths = [length] * (room // length) + [room % length] * (room % length > n_virtual)
            assert sum(-(-n // KV_BLOCK) for n in lengths) <= most_blocks(room, n_virtual)
