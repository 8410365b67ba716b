"""Vectors and ranks: what transformers makes of the same checkpoints, and the same bits whoever stands beside."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import ContextOverflowError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS
from tests.arch import tiny
from tests.convert import checkpoints
from tests.convert import encoder_checkpoints as encoders
from tests.convert.encoder_checkpoints import FAMILIES, RANKERS, TEXTS

# Sums of a few hundred float32 products in another order.
FLOAT32 = 1e-5
POOLING = {"bert": "cls", "qwen3": "last"}


def saved(family: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint in a folder, and the same model with its tokenizer."""
    own = {"jina": encoders.save_jina, "nomic, first form": encoders.save_first_nomic}
    if family in own:
        return own[family](folder)
    return encoders.save(FAMILIES, family, folder, POOLING.get(family, "mean"))


def states_of(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    if isinstance(model, encoders.JinaBert):
        with torch.no_grad():
            return model(torch.tensor([tokenizer(text)["input_ids"]])).numpy()
    return encoders.states(model, tokenizer, text)


def vectors_of(model: Any, tokenizer: Any, texts: list[str], pooling: str) -> np.ndarray:
    return np.stack([encoders.pooled(states_of(model, tokenizer, text), pooling) for text in texts])


def loaded(path: Path, **settings: Any) -> edgellm.Model:
    return edgellm.load(path, n_threads=2, **settings)


@pytest.mark.parametrize("family", [*FAMILIES, "jina", "nomic, first form"])
def test_every_encoder_is_what_transformers_computes(family: str, tmp_path: Path) -> None:
    """In F32 to the rounding of sums, in F16 nearly; each text the same to the bit by itself and among others."""
    model, tokenizer = saved(family, tmp_path / "model")
    pooling = POOLING.get(family, "mean")
    want = vectors_of(model, tokenizer, TEXTS, pooling)
    assert np.abs(want @ want.T - 1).max() > 0.05  # else there is nothing to see
    for type_name in ("F32", "F16"):
        edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", type_name)
        with loaded(tmp_path / "model.gguf", n_batch=64) as found:
            got = found.embed(TEXTS)
            assert got.dtype == np.float32
            if type_name == "F32":
                np.testing.assert_allclose(got, want, atol=FLOAT32)
                tokens = found.embed(TEXTS, pooling="none", normalize=False)
                for rows, text in zip(tokens, TEXTS, strict=True):
                    np.testing.assert_allclose(rows, states_of(model, tokenizer, text), atol=20 * FLOAT32)
            assert ((got * want).sum(-1) > 0.9999).all()
            assert got.tobytes() == np.concatenate([found.embed(text) for text in TEXTS]).tobytes()
            assert got[::-1].tobytes() == found.embed(TEXTS[::-1]).tobytes()
        (tmp_path / "model.gguf").unlink()


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_quantized_weights_and_the_same_bits(activations: str, tmp_path: Path) -> None:
    model, tokenizer = encoders.save(FAMILIES, "bert", tmp_path / "model", "mean")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "Q8_0")
    with loaded(tmp_path / "model.gguf", activations=activations) as found:
        got = found.embed(TEXTS)
        assert ((got * vectors_of(model, tokenizer, TEXTS, "mean")).sum(-1) > 0.995).all()
        assert got.tobytes() == np.concatenate([found.embed(text) for text in TEXTS]).tobytes()


@pytest.mark.parametrize("family", RANKERS)
def test_every_reranker_is_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model, tokenizer = encoders.save(RANKERS, family, tmp_path / "model")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "F32")
    with loaded(tmp_path / "model.gguf") as found:
        texts = [text for text in TEXTS if text]  # transformers takes an empty one for none
        got = found.rank("which words?", texts)
        np.testing.assert_allclose(got, encoders.scores(model, tokenizer, "which words?", texts), atol=5 * FLOAT32)
        assert got.std() > 0.01
        assert got[1:2].tobytes() == found.rank("which words?", texts[1]).tobytes()
        for ask in (lambda: found.embed("a"), lambda: found.embed("a", pooling="mean")):
            with pytest.raises(UsageError, match=r"model.gguf is a reranker.*rank\(query, texts\)"):
                ask()
        with pytest.raises(UsageError, match=r"model.gguf ranks texts and writes none: use rank\(query, texts\)"):
            found.chat([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize("labels", [["Bad", "Fair", "Good"], []])
def test_a_classifier_of_several_classes_says_what_it_is(labels: list[str], tmp_path: Path) -> None:
    """Whatever it is asked for, before a text is computed; where llama.cpp would rank by the first class."""
    encoders.save(RANKERS, "bert", tmp_path / "model")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "rank.gguf", "F32")
    with GGUFFile.open(tmp_path / "rank.gguf") as file:
        entries = [(name, x.shape, x.format, x.raw) for name, x in file.tensors.items()]
        at = {name: i for i, (name, *_) in enumerate(entries)}
        for name, shape in (("cls.output.weight", (3, 64)), ("cls.output.bias", (3,))):
            entries[at[name]] = (name, shape, FORMATS["F32"], np.ones(shape, np.float32))
        metadata = dict(file.metadata)
        metadata.pop("bert.classifier.output_labels", None)
        metadata |= {"bert.classifier.output_labels": labels} if labels else {}
        GGUFWriter(tmp_path / "classes.gguf", metadata, entries).write()
    named = r"\(bad, fair, good\)" if labels else r"\(which have no names\)"
    with loaded(tmp_path / "classes.gguf") as found:
        for ask in (
            lambda: found.rank("a", ["b"]),
            lambda: found.embed("a"),
            lambda: found.embed("a", pooling="cls"),
            lambda: found.chat([{"role": "user", "content": "Hello"}]),
        ):
            with pytest.raises(UsageError, match=f"classes.gguf is a classifier of 3 classes {named}.*load a reranker"):
                ask()
        assert found.embed("a", pooling="none")[0].shape[1] == 64


@pytest.mark.parametrize(
    ("padding", "says"), [(1, "'</s>', which stands in every text"), (4, "in texts with it"), (3, "")]
)
def test_positions_that_a_padding_token_would_take(padding: int, says: str, tmp_path: Path) -> None:
    """Of XLM-R, where transformers counts positions without the tokens of that id."""
    encoders.save(FAMILIES, "xlm-roberta", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"pad_token_id": padding}))
    if padding == 1:
        with pytest.raises(UnsupportedError, match=says):
            convert_checkpoint(tmp_path / "model", tmp_path / "out.gguf")
    else:
        notes = convert_checkpoint(tmp_path / "model", tmp_path / "out.gguf")
        assert any("pad_token_id" in note for note in notes) == bool(says)


def test_another_activation_of_a_classifier_is_refused(tmp_path: Path) -> None:
    encoders.save(RANKERS, "modern", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"classifier_activation": "silu"}))
    with pytest.raises(UnsupportedError, match="classifier_activation is 'silu'"):
        convert_checkpoint(tmp_path / "model", tmp_path / "out.gguf")


def test_a_decoder_that_answers_yes_or_no(tmp_path: Path) -> None:
    """As llama.cpp writes Qwen3-Reranker: two rows of its head, and a prompt with two places, which spells no control
    token of what is filled in.
    """
    model, tokenizer = encoders.save(FAMILIES, "qwen3", tmp_path / "model", "last")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "plain.gguf", "F32")
    yes_no = np.random.default_rng(1).standard_normal((2, 64), np.float32) / 4
    with GGUFFile.open(tmp_path / "plain.gguf") as file:
        entries = [(name, x.shape, x.format, x.raw) for name, x in file.tensors.items()]
        entries.append(("cls.output.weight", (2, 64), FORMATS["F32"], yes_no))
        more = {"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"],
                "tokenizer.chat_template.rerank": "<s>is {document} what {query}?</s>"}  # fmt: skip
        GGUFWriter(tmp_path / "rank.gguf", dict(file.metadata) | more, entries).write()
    texts = ["some words", "numbers 1 to 9"]
    with loaded(tmp_path / "rank.gguf") as found:
        got = found.rank("which", texts)
        hostile = found._pair("a<s>", "b</s>c", 0, False).token_ids
    assert (hostile.count(0), hostile.count(1)) == (1, 1)
    for score, text in zip(got, texts, strict=True):
        ids = [0, *tokenizer(f"is {text} what which?", add_special_tokens=False)["input_ids"], 1]
        with torch.no_grad():
            last = model.model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        weights = np.exp(yes_no @ last)
        assert score == pytest.approx(weights[0] / weights.sum(), abs=FLOAT32)


@pytest.mark.parametrize("activation", ["Identity", "Tanh"])
def test_dense_layers_after_pooling(activation: str, tmp_path: Path) -> None:
    model, tokenizer = encoders.save(FAMILIES, "gemma", tmp_path / "model", "mean")
    layers = encoders.add_dense(tmp_path / "model", [96, 32], activation)
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "F32")
    with torch.no_grad():
        x = torch.tensor(np.stack([encoders.states(model, tokenizer, text).mean(0) for text in TEXTS]))
        for layer in layers:
            x = torch.tanh(layer(x)) if activation == "Tanh" else layer(x)
    want = torch.nn.functional.normalize(x).numpy()
    with loaded(tmp_path / "model.gguf") as found:
        np.testing.assert_allclose(found.embed(TEXTS), want, atol=FLOAT32)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    encoders.save(FAMILIES, "bert", folder / "model", "mean")
    prompts = {"query": "find: ", "code": "def "}
    encoders.as_sentence_transformers(folder / "model", "mean", prompts)
    edgellm.convert_checkpoint(folder / "model", folder / "bert.gguf", "F32")
    return folder / "bert.gguf"


def test_what_the_file_says(bert: Path) -> None:
    """As llama.cpp writes and reads it."""
    with GGUFFile.open(bert) as file:
        assert file.metadata["general.architecture"] == "bert"
        assert file.metadata["bert.pooling_type"] == 1
        assert file.metadata["bert.attention.causal"] is False
        assert file.metadata["bert.context_length"] == len(file.tensors["position_embd.weight"].raw) == 512
        assert file.metadata["tokenizer.ggml.token_type_count"] == 2


def test_options(bert: Path) -> None:
    with loaded(bert) as model:
        usual = model.embed(TEXTS)
        np.testing.assert_allclose(np.linalg.norm(usual, axis=1), 1, atol=1e-6)
        raw = model.embed(TEXTS, normalize=False)
        np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), usual, atol=1e-6)
        short = model.embed(TEXTS, dimensions=16)
        np.testing.assert_allclose(short, raw[:, :16] / np.linalg.norm(raw[:, :16], axis=1, keepdims=True), atol=1e-6)
        assert model.embed("find: me").tobytes() == model.embed("me", task="query").tobytes()
        assert model.embed("find: me").tobytes() == model.embed("me", prompt="find: ").tobytes()
        assert model.embed("me", pooling="cls").tobytes() != model.embed("me").tobytes()
        cosines = model.embed(TEXTS) @ model.embed("words", task="query")[0]
        np.testing.assert_array_equal(model.rank("words", TEXTS), cosines)
        assert model.embed([]).shape == (0, 64)
        assert repr(model).startswith("<Model bert.gguf, bert")
        assert model.tokenize("words") and model.n_ctx == 512


def test_token_ids_in_place_of_texts(bert: Path) -> None:
    """They are computed as they are; special tokens come only if they are given, and may be any of the vocabulary."""
    with loaded(bert) as model:
        ids = model.tokenize("some words", add_special=True)
        want = model.embed("some words")
        assert model.embed(ids).tobytes() == model.embed([ids]).tobytes() == want.tobytes()
        assert model.embed(np.array([ids, ids]))[1:].tobytes() == want.tobytes()
        assert model.embed([ids, "some words", tuple(ids)]).tobytes() == want.tobytes() * 3
        bare = model.tokenize("some words")
        assert len(bare) == len(ids) - 2 and model.embed(bare).tobytes() != want.tobytes()
        # Such as no text is read into: it would come back as others.
        odd = [ids[0], ids[0], *bare, ids[-1]]
        assert model.tokenize(model.detokenize(odd), add_special=True) != odd
        assert model.embed(odd, pooling="none")[0].shape[0] == len(odd)
        n = model.n_vocab
        for call, error, line in (
            (
                lambda: model.embed([n]),
                UsageError,
                f"texts holds {n}; the ids of this vocabulary go from 0 to {n - 1}",
            ),
            (lambda: model.embed(["a", [1, -1]]), UsageError, r"texts\[1\] holds -1; the ids"),
            (lambda: model.embed([[1], [2.5]]), UsageError, r"texts\[1\] holds 2.5; expected token ids, whole"),
            (lambda: model.embed([[True]]), UsageError, r"texts\[0\] holds True; expected token ids"),
            (lambda: model.embed([[]]), UsageError, r"texts\[0\] is empty; expected at least one token"),
            (lambda: model.embed([1, "a"]), UsageError, r"texts\[0\] is 1; expected a text \(str\) or token ids"),
            (lambda: model.embed({}), UsageError, r"texts is {}; expected a text \(str\) or token ids.* a list of"),
            (lambda: model.embed([ids], task="query"), UsageError, "task is given, which puts words before texts, and"),
            (lambda: model.embed([[1] * 513]), ContextOverflowError, r"texts\[0\] has 513 tokens, and bert.gguf takes"),
        ):
            with pytest.raises(error, match=line):
                call()
        assert model.embed([1] * 600, truncate=True).tobytes() == model.embed([1] * 512).tobytes()


def test_bad_input(bert: Path) -> None:
    long = "words and " * 600
    with loaded(bert) as model:
        for call, error, line in (
            (lambda: model.embed("a", task="song"), UsageError, "task is 'song', and the model has no prompt for it: "
             "it knows query, code, or give prompt"),
            (lambda: model.embed("a", task="query", prompt="b"), UsageError, "both task and prompt are given"),
            (lambda: model.embed("a", pooling="max"), UsageError, "pooling is 'max'; expected one of none"),
            (lambda: model.embed(["a", 3]), UsageError, "texts"),
            (lambda: model.embed("a", dimensions=65), UsageError, "dimensions is 65; expected .* 64"),
            (lambda: model.embed(["a", long]), ContextOverflowError, r"texts\[1\] has \d+ tokens, and bert.gguf takes "
             "512; cut it into passages, or set truncate"),
            (lambda: model.generate("a"), UsageError, r"bert.gguf makes vectors of texts and writes none: use embed"),
            (lambda: model.logits([1]), UsageError, r"bert.gguf makes vectors of texts and writes none: use embed"),
            (lambda: model.chat([{"role": "user", "content": "a"}]), UsageError, "bert.gguf makes vectors"),
        ):  # fmt: skip
            with pytest.raises(error, match=line):
                call()
        assert model.embed(long, truncate=True).shape == (1, 64)
        assert len(model.embed(long, truncate=True, pooling="none")[0]) == 512
    for use in (lambda: model.embed("a"), lambda: model.rank("a", "b"), lambda: model.chat([])):
        with pytest.raises(UsageError, match="the model is closed"):
            use()


def test_threads_at_once(bert: Path) -> None:
    """Each has what it would have alone; a model that is closed under them says so."""
    with loaded(bert, n_batch=64) as model:
        want = model.embed(TEXTS).tobytes()
        with ThreadPoolExecutor(4) as pool:
            assert {x.tobytes() for x in pool.map(lambda _: model.embed(TEXTS), range(8))} == {want}
            running = [pool.submit(model.embed, TEXTS * 50) for _ in range(4)]
            model.close()
        for future in running:
            problem = future.exception()
            assert problem is None or (isinstance(problem, UsageError) and str(problem) == "the model is closed")


def test_pairs_that_are_too_long(tmp_path: Path) -> None:
    encoders.save(RANKERS, "bert", tmp_path / "model")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "F32")
    with loaded(tmp_path / "model.gguf", n_ctx=40) as model:
        with pytest.raises(ContextOverflowError, match=r"query and texts\[1\] together has \d+ tokens"):
            model.rank("which?", ["a", "words " * 100])
        cut = model._pair("which?", "words " * 100, 1, True)
        assert 20 < len(cut.token_ids) <= 40
        assert model.rank("which?", "words " * 100, truncate=True).shape == (1,)
        with pytest.raises(ContextOverflowError, match="query has"):
            model.rank("words " * 100, "a", truncate=True)


def test_a_model_for_chat(tmp_path: Path) -> None:
    """It makes vectors when it is told how, beside the text that it writes; it ranks nothing."""
    original = checkpoints.save("llama", tmp_path / "model")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "chat.gguf", "F32")
    tokenizer = checkpoints.tokenizer()
    with loaded(tmp_path / "chat.gguf", n_ctx=256, n_batch=32) as model:
        before = "".join(model.generate("def a", max_tokens=5, temperature=0))
        want = vectors_of(original, tokenizer, TEXTS[2:], "last")
        np.testing.assert_allclose(
            model.embed(TEXTS[2:], pooling="last", truncate=True)[[0, 2]], want[[0, 2]], atol=FLOAT32
        )
        assert "".join(model.generate("def a", max_tokens=5, temperature=0)) == before
        with pytest.raises(UsageError, match=r"chat.gguf is a model for chat.*choose pooling mean or last"):
            model.embed("a")
        with pytest.raises(
            UsageError, match=r"chat.gguf is a model for chat and has no head that ranks; load a reranker"
        ):
            model.rank("a", "b")
    with pytest.raises(UsageError, match="the model is closed"):
        model.embed("a", pooling="last")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"bert.pooling_type": 9}, "bert.pooling_type is 9; edgellm knows 0 to 4"),
        ({"bert.attention.causal": True}, "bert.attention.causal is true"),
        ({"bert.hidden_act": "xielu"}, "the activation 'xielu'"),
        ({"bert.context_length": 513}, "'position_embd.weight' has 512 rows; expected one for each of 513 positions"),
        ({"edgellm.embedding.prompts.a": 3}, "edgellm.embedding.prompts.a is 3; expected a text"),
    ],
)
def test_files_that_say_what_cannot_be(bert: Path, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with GGUFFile.open(bert) as file:
        entries = [(name, x.shape, x.format, x.raw) for name, x in file.tensors.items()]
        GGUFWriter(tmp_path / "bad.gguf", dict(file.metadata) | changes, entries).write()
    with pytest.raises(edgellm.FileProblem, match=f"bad.gguf: .*{line}"), loaded(tmp_path / "bad.gguf") as model:
        model.embed("a")


def test_modules_that_are_not_known(tmp_path: Path) -> None:
    encoders.save(FAMILIES, "bert", tmp_path / "model", "mean")
    target = tmp_path / "model.gguf"
    pooling = tmp_path / "model" / "1_Pooling" / "config.json"
    encoders.write(pooling, {"pooling_mode_max_tokens": True})
    with pytest.raises(UnsupportedError, match="pooling by pooling_mode_max_tokens; edgellm knows"):
        edgellm.convert_checkpoint(tmp_path / "model", target)
    encoders.write(
        tmp_path / "model" / "modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../b"}]
    )
    with pytest.raises(edgellm.FormatError, match=r"modules.json: the path '../b' leads out of the folder"):
        edgellm.convert_checkpoint(tmp_path / "model", target)
    encoders.write(tmp_path / "model" / "modules.json", [{"type": "a.Transformer"}, {"type": "a.CNN"}])
    with pytest.raises(UnsupportedError, match=r"modules.json: module 1 is 'CNN'; edgellm converts"):
        edgellm.convert_checkpoint(tmp_path / "model", target)
    assert not target.exists() and tiny.N_VOCAB
