"""Looking inside a model: any value read, replaced, or sent through the head; any weight replaced for a while."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.errors import EdgellmError, UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS
from tests.arch import tiny

N_TOKENS = 70  # more than a window of the tiny Gemma has
FAMILIES = {
    "llama": (lambda: tiny.llama(), "Q8_0"),
    "llama in float32": (lambda: tiny.llama(), "F32"),
    "gemma3": (lambda: tiny.gemma3(), "Q4_0"),
}


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(7).integers(3, tiny.N_VOCAB, N_TOKENS).tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def path(request, tmp_path_factory) -> Path:
    make, format_name = FAMILIES[request.param]
    return make().save(tmp_path_factory.mktemp("models") / "tiny.gguf", format_name)


@pytest.fixture(scope="module")
def loaded(path):
    with edgellm.load(path, n_threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def everything(loaded, ids) -> dict[str, np.ndarray]:
    """All values of the text."""
    return loaded.run(ids, taps=["*"])


@pytest.fixture
def model(loaded, ids, everything):
    """Whatever a test does with it, it is the same afterwards: its programs, its logits, its cache."""
    usual = loaded._runner.programs
    yield loaded
    assert loaded._runner.programs is usual
    np.testing.assert_array_equal(loaded.logits(ids), everything["logits"])
    loaded._scheduler.prefixes.clear()
    assert loaded._runner.cache.n_free_blocks == loaded._runner.cache.n_blocks


def layers(model) -> range:
    return range(model.config.n_layers)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, expected[name], err_msg=name)


# --- reading -----------------------------------------------------------------------------------------------


def test_every_value_has_its_name_and_width(model, everything) -> None:
    config = model.config
    assert list(everything) == list(model.values)
    for name, rows in everything.items():
        assert rows.shape == (N_TOKENS, model.values[name]) and rows.dtype == np.float32
        assert np.isfinite(rows).all() and rows.std() > 0
    names = list(model.values)
    assert (names[0], names[-3:]) == ("embd", ["hidden", "output_norm", "logits"])
    widths = {
        "attn_norm": config.n_embd,
        "attn_q": config.n_heads * config.head_dim,
        "attn_k": config.n_kv_heads * config.head_dim,
        "attn_v": config.n_kv_heads * config.head_dim,
        "kqv_out": config.n_heads * config.head_dim,
        "attn_out": config.n_embd,
        "ffn_inp": config.n_embd,
        "ffn_gate": config.n_ff,
        "ffn_act": config.n_ff,
        "ffn_out": config.n_embd,
    }
    for layer in layers(model):
        for name, width in widths.items():
            assert model.values[f"blk.{layer}.{name}"] == width
        assert (f"blk.{layer}.l_out" in names) == (layer < config.n_layers - 1)


def test_the_values_are_those_that_the_next_steps_see(model, everything) -> None:
    """What a layer adds to its stream is what it is known to add."""
    is_gemma = model.config.architecture == "gemma3"  # which normalizes what it adds
    attention, feed_forward = ("post_attention_norm", "post_ffw_norm") if is_gemma else ("attn_out", "ffn_out")
    stream = everything["embd"]
    for layer in layers(model):
        block = f"blk.{layer}."
        np.testing.assert_array_equal(everything[f"{block}ffn_inp"], stream + everything[f"{block}{attention}"])
        stream = everything[f"{block}ffn_inp"] + everything[f"{block}{feed_forward}"]
        np.testing.assert_array_equal(everything.get(f"{block}l_out", everything["hidden"]), stream)


def test_patterns(model, ids, everything) -> None:
    for taps, wanted in {
        ("logits",): {"logits"},
        ("hidden", "embd"): {"embd", "hidden"},
        ("blk.0.*",): {name for name in everything if name.startswith("blk.0.")},
        ("blk.*.attn_out", "embd"): {"embd", *(f"blk.{layer}.attn_out" for layer in layers(model))},
        ("blk.[01].ffn_???", "*.1.ffn_inp"): {f"blk.{n}.ffn_{part}" for n in (0, 1) for part in ("inp", "out", "act")},
    }.items():
        found = model.run(ids, taps=taps)
        assert list(found) == [name for name in model.values if name in wanted]  # in the order of the model
        same(found, everything)
    assert list(model.run(ids, taps="hid*")) == ["hidden"]
    assert list(model.run(ids)) == ["logits"]


def test_looking_changes_nothing(path, ids, everything) -> None:
    """In whatever batches, at whatever else at the same time, by however many threads."""
    for n_batch, n_threads in ((1, 1), (3, 2), (64, 1), (512, 2)):
        with edgellm.load(path, n_batch=n_batch, n_threads=n_threads) as model:
            np.testing.assert_array_equal(model.logits(ids), everything["logits"])
            same(model.run(ids, taps="*"), everything)
            same(model.run(ids, taps=["blk.1.attn_q", "logits"]), everything)


def test_the_beginning_of_a_text_is_what_it_is_in_the_whole(model, ids, everything) -> None:
    for n in (1, 2, 17):
        same(model.run(ids[:n], taps="*"), {name: rows[:n] for name, rows in everything.items()})


def test_logit_lens(model, everything) -> None:
    np.testing.assert_array_equal(model.unembed(everything["hidden"]), everything["logits"])
    np.testing.assert_array_equal(model.unembed(everything["hidden"][5:6]), everything["logits"][5:6])
    early = model.unembed(everything["blk.0.l_out"])
    assert early.shape == everything["logits"].shape
    assert not np.array_equal(early, everything["logits"])
    assert model.unembed(np.empty((0, model.config.n_embd), np.float32)).shape == (0, model.n_vocab)


def test_there_is_room_whatever_the_cache_still_holds(ids, tmp_path) -> None:
    """Texts that ended are kept for others that begin alike, as long as nobody needs their room."""
    with edgellm.load(tiny.llama().save(tmp_path / "tiny.gguf"), n_ctx=256) as model:
        expected = model.run(ids, taps="hidden")["hidden"]
        for first in range(3, 20):
            list(model.generate([first, *range(3, 230)], max_tokens=1))
        np.testing.assert_array_equal(model.run(ids, taps="hidden")["hidden"], expected)


# --- values that are given ---------------------------------------------------------------------------------


def test_a_value_bound_to_what_it_is_changes_nothing(model, ids, everything) -> None:
    """Also where it cuts off all before it: what is left begins with a layer of another kind."""
    cuts = [name for name in model.values if name.endswith(("l_out", "ffn_inp"))]
    for name in [*cuts, *(name for name in model.values if not name.startswith("blk.") or name.startswith("blk.1."))]:
        taps = {"logits", "hidden", f"blk.{model.config.n_layers - 1}.kqv_out"} - {name}
        same(model.run(ids, taps=taps, bind={name: everything[name]}), everything)


def test_a_part_of_the_model_that_has_nothing_to_do(model, ids, everything) -> None:
    for names, taps in ((["hidden"], "logits"), (["hidden", "logits"], "output_norm"), (["embd", "logits"], "hidden")):
        same(model.run(ids, taps=[taps], bind={name: everything[name] for name in names}), everything)


def test_several_values_at_once(model, ids, everything) -> None:
    names = ["embd", "blk.1.attn_q", "blk.0.ffn_out", "output_norm"]
    same(model.run(ids, taps=["logits", "hidden"], bind={name: everything[name] for name in names}), everything)


@pytest.mark.parametrize("name", ["embd", "blk.0.attn_v", "blk.1.kqv_out", "blk.1.ffn_act", "hidden", "output_norm"])
def test_a_value_bound_to_nothing_changes_what_comes_after_it(model, ids, everything, name: str) -> None:
    """And from the token on whose value it is."""
    first = 5
    other = everything[name].copy()
    other[first:] = 0
    found = model.run(ids, taps=["blk.0.attn_norm", "logits"], bind={name: other})
    np.testing.assert_array_equal(found["logits"][:first], everything["logits"][:first])
    assert all((a != b).any() for a, b in zip(found["logits"][first:], everything["logits"][first:], strict=True))
    if name != "embd":
        np.testing.assert_array_equal(found["blk.0.attn_norm"], everything["blk.0.attn_norm"])


def test_what_is_given_is_copied(model, ids, everything) -> None:
    """Of any order in memory, and never written to."""
    rows = np.asfortranarray(everything["blk.0.l_out"])
    rows.flags.writeable = False
    same(model.run(ids, bind={"blk.0.l_out": rows}), everything)
    padded = np.zeros((N_TOKENS, 2 * rows.shape[1]), np.float32)
    padded[:, ::2] = rows
    same(model.run(ids, bind={"blk.0.l_out": padded[:, ::2]}), everything)


# --- weights that are replaced -----------------------------------------------------------------------------


def raw_of(path: Path, name: str) -> np.ndarray:
    with GGUFFile.open(path) as file:
        return np.array(file.tensors[name].raw)


def with_weights(path: Path, to: Path, weights: dict[str, np.ndarray]) -> Path:
    """The same file with other bytes for some tensors."""
    with GGUFFile.open(path) as file:
        entries = [
            (name, tensor.shape, tensor.format, weights.get(name, tensor.raw)) for name, tensor in file.tensors.items()
        ]
        GGUFWriter(to, dict(file.metadata), entries).write()
    return to


WEIGHTS = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.1.attn_norm.weight", "output_norm.weight",
           "token_embd.weight")  # fmt: skip


@pytest.fixture(params=WEIGHTS)
def another(request, path, everything, tmp_path):
    """The name of a weight, other bytes for it, and all values of the model that has those."""
    name = request.param
    raw = raw_of(path, name)
    other = np.roll(raw.reshape(-1), 2448).reshape(raw.shape)  # whole blocks of all the formats here
    with edgellm.load(with_weights(path, tmp_path / "other.gguf", {name: other})) as changed:
        expected = changed.run(np.random.default_rng(7).integers(3, tiny.N_VOCAB, N_TOKENS), taps="*")
    assert (expected["logits"] != everything["logits"]).any()
    return name, other, expected


def test_another_weight_for_a_while_makes_another_model(model, ids, another) -> None:
    """Whatever it is asked meanwhile."""
    name, other, expected = another
    with model.bind({name: other}):
        np.testing.assert_array_equal(model.logits(ids), expected["logits"])
        np.testing.assert_array_equal(model.unembed(expected["hidden"]), expected["logits"])
        same(model.run(ids, taps=["hidden", "blk.1.attn_q", "logits"]), expected)
        with model.square_sums() as sums:
            np.testing.assert_array_equal(model.logits(ids), expected["logits"])
    activations = expected["blk.1.ffn_act"].astype(np.float64)
    np.testing.assert_allclose(sums["blk.1.ffn_down.weight"], np.square(activations).sum(0), rtol=1e-6)


def test_another_weight_for_one_run(model, ids, another) -> None:
    name, other, expected = another
    same(model.run(ids, taps="*", bind={name: other}), expected)
    same(model.run(ids, bind={name: other, "blk.0.attn_norm": expected["blk.0.attn_norm"]}), expected)


def test_what_was_written_meanwhile_is_not_taken_for_the_model_s_own(model, path, ids) -> None:
    """No text begins with what the cache holds of other weights."""

    def reused(prompt: list[int]) -> int:
        generation = model.generate(prompt, temperature=0.0, max_tokens=3)
        for _ in generation:
            pass
        return generation.stats.n_reused_tokens

    other = ids[::-1]
    assert reused(ids) == 0 < reused(ids)
    with model.bind({"blk.0.attn_v.weight": np.zeros_like(raw_of(path, "blk.0.attn_v.weight"))}):
        assert reused(ids) == reused(other) == reused(other) == 0
    assert reused(other) == 0


def test_bound_weights_come_back_after_an_exception(model, path, ids) -> None:
    raw = {name: np.zeros_like(raw_of(path, name)) for name in WEIGHTS}
    with pytest.raises(ZeroDivisionError), model.bind(raw):
        assert not model.logits(ids).any()  # all of the last norm is 0
        raise ZeroDivisionError
    with pytest.raises(UsageError):
        model.run(ids, bind=raw | {"no such": raw["output_norm.weight"]})
    # The fixture sees that all is as it was; and they can be bound again.
    with model.bind(raw), model.bind({"blk.0.attn_v.weight": raw_of(path, "blk.0.attn_v.weight")}):
        pass


@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_of_any_format_and_use(tied: bool, ids, tmp_path) -> None:
    """Norms and biases of half the bits, an embedding that makes logits too: bound as any other, or refused."""
    checkpoint = tiny.llama(tie_word_embeddings=tied)
    half, entries = FORMATS["F16"], []
    checkpoint.tensors["blk.0.attn_q.bias"] = np.linspace(-1, 1, 64, dtype=np.float32)
    checkpoint.tensors["rope_freqs.weight"] = np.linspace(1, 2, 8, dtype=np.float32)
    for name, x in checkpoint.tensors.items():
        entries.append((name, x.shape, half, half.quantize(x)))
    path = tmp_path / "half.gguf"
    GGUFWriter(path, checkpoint.metadata, entries).write()
    with edgellm.load(path) as model:
        before = model.logits(ids)
        for name, x in checkpoint.tensors.items():
            other = half.quantize(x * 1.5 + 0.25)
            changed_path = with_weights(path, tmp_path / "other.gguf", {name: other})
            with edgellm.load(changed_path) as changed:
                expected = changed.logits(ids)
            assert (expected != before).any(), name
            try:
                with model.bind({name: other}):
                    bound = model.logits(ids)
            except UsageError as problem:
                assert name in str(problem)
            else:
                np.testing.assert_array_equal(bound, expected, err_msg=name)


# --- what cannot be ----------------------------------------------------------------------------------------


def refused(call, *parts: str) -> None:
    with pytest.raises(UsageError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 400
    for part in parts:
        assert part in message


def test_names_that_do_not_exist(model, path, ids) -> None:
    row = np.zeros((N_TOKENS, 64), np.float32)
    raw = raw_of(path, "output_norm.weight")
    refused(lambda: model.run(ids, taps=["logit"]), "'logit'", "nearest", "logits")
    refused(lambda: model.run(ids, taps=["hidden", "blk.9.attn_out"]), "'blk.9.attn_out'", "nearest", ".attn_out")
    refused(lambda: model.run(ids, taps=["layer*"]), "'layer*'")
    refused(lambda: model.run(ids, bind={"blk.0.atn_out": row}), "'blk.0.atn_out'", "blk.0.attn_out")
    refused(lambda: model.run(ids, bind={"output_nrm.weight": raw}), "'output_nrm.weight'", "output_norm.weight")
    refused(lambda: model.bind({"blk.0.attn_q": raw}).__enter__(), "'blk.0.attn_q'", "blk.0.attn_q.weight")


def test_arrays_that_do_not_fit(model, path, ids, everything) -> None:
    hidden = everything["hidden"]
    for rows in (hidden[:-1], hidden[:, :-1], hidden.astype(np.float64), hidden.view(np.int32), hidden.ravel(), 0.0):
        refused(lambda rows=rows: model.run(ids, bind={"hidden": rows}), "'hidden'", "float32", f"[{N_TOKENS}, 64]")
    for states in (hidden[0], hidden[:, 1:], hidden.astype(np.float64), hidden[None], np.float32(3)):
        refused(lambda states=states: model.unembed(states), "float32", "[", ", 64]")
    raw = raw_of(path, "blk.0.attn_q.weight")
    for other in (raw[:-1], raw.reshape(-1)[1:], raw.view(np.int8), raw.astype(np.float32), np.uint8(1)):
        refused(lambda other=other: model.bind({"blk.0.attn_q.weight": other}).__enter__(), "blk.0.attn_q.weight",
                f"{raw.nbytes} bytes of uint8")  # fmt: skip
    for nonsense in ([[1.0], [2.0, 3.0]], None, "x", [None]):
        for name in ("hidden", "output_norm.weight"):
            refused(lambda name=name, nonsense=nonsense: model.run(ids, bind={name: nonsense}), name)


def test_questions_that_are_none(model, ids) -> None:
    for taps in (5, [5], [None], [b"logits"], None):
        refused(lambda taps=taps: model.run(ids, taps=taps))
    for bind in ([1], "logits", {5: np.zeros(1)}):
        refused(lambda bind=bind: model.run(ids, bind=bind))
    assert model.run(ids, taps=[]) == {}


def test_tapped_and_bound_at_once(model, ids, everything) -> None:
    bound = {"hidden": everything["hidden"]}
    for taps in (["hidden"], ["hid*", "logits"], "*"):
        refused(lambda taps=taps: model.run(ids, taps=taps, bind=bound), "'hidden'", "tapped and bound")


def test_a_weight_is_bound_once_at_a_time(model, path, ids) -> None:
    name, raw = "output_norm.weight", raw_of(path, "output_norm.weight")
    with model.bind({name: raw}):
        refused(lambda: model.bind({name: raw}).__enter__(), name, "bound already")
        refused(lambda: model.run(ids, bind={name: raw}), name, "bound already")
        with model.bind({"blk.0.attn_norm.weight": raw}):
            pass
        refused(lambda: model.bind({"blk.0.attn_norm.weight": raw, name: raw}).__enter__(), name, "bound already")
        with model.bind({"blk.0.attn_norm.weight": raw}):  # of which nothing was kept
            pass


def test_after_close(path, ids) -> None:
    model = edgellm.load(path)
    raw = raw_of(path, "output_norm.weight")
    late = model.bind({"output_norm.weight": raw}), model.square_sums()
    model.close()
    hidden = np.zeros((1, model.config.n_embd), np.float32)
    for call in (
        lambda: model.run(ids),
        lambda: model.unembed(hidden),
        lambda: model.bind({"output_norm.weight": raw}),
        lambda: model.square_sums(),
        *(context.__enter__ for context in late),
    ):
        refused(call, "the model is closed")


def test_closed_while_it_is_bound(path, ids) -> None:
    """By whoever has it for itself: what is asked afterwards is refused, and the context ends as any other."""
    model = edgellm.load(path)
    with model.bind({"output_norm.weight": raw_of(path, "output_norm.weight")}):
        model.close()
        refused(lambda: model.run(ids), "the model is closed")
    with pytest.raises(EdgellmError):
        model.logits(ids)


def test_others_wait_until_it_is_over(model, path, ids, everything) -> None:
    """No thread computes with weights that another one has bound."""
    found: list[np.ndarray] = []
    others = [threading.Thread(target=lambda: found.append(model.logits(ids))) for _ in range(2)]
    with model.bind({"output_norm.weight": np.zeros_like(raw_of(path, "output_norm.weight"))}):
        for other in others:
            other.start()
        assert not model.logits(ids).any() and not found
    for other in others:
        other.join(60)
    assert len(found) == 2
    for logits in found:
        np.testing.assert_array_equal(logits, everything["logits"])
