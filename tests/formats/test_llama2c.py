from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError
from edgellm.formats.llama2c import read_llama2c, read_llama2c_tokenizer
from edgellm.quants import FORMATS

from .test_fuzz import mutate, small_or_huge
from .trained import mapped

any_settings = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAGIC = 0x616B3432


def shapes_of(dim, hidden, n_heads, n_kv, n_vocab):
    kv = dim // n_heads * n_kv
    layer = {"rms_att_weight": (dim,), "wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
    layer |= {"rms_ffn_weight": (dim,), "w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
    return layer, {"token_embedding_table": (n_vocab, dim), "rms_final_weight": (dim,), "wcls": (n_vocab, dim)}


def model_file(version=0, head=2, hidden=3, n_layers=2, n_heads=4, n_kv=2, n_vocab=5, n_ctx=6, shared=True):
    """The bytes of a model, and its weights by our names, as llama2.c's exporters write them in PyTorch."""
    dim = head * n_heads
    random = np.random.default_rng(0)
    layer, once = shapes_of(dim, hidden, n_heads, n_kv, n_vocab)
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in once.items()}
    for i in range(n_layers):
        weights |= {f"layers.{i}.{name}": random.standard_normal(shape, np.float32) for name, shape in layer.items()}
    if shared:
        del weights["wcls"]

    def of_layers(*kinds):
        return [weights[f"layers.{i}.{kind}"] for kind in kinds for i in range(n_layers)]

    numbers = (dim, hidden, n_layers, n_heads, n_kv)
    matrices, feed_forward = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")
    if version == 0:
        content = struct.pack("<7i", *numbers, n_vocab if shared else -n_vocab, n_ctx)
        angles = [np.full(n_ctx * head // 2, 7, np.float32)] * 2
        order = [weights["token_embedding_table"], *of_layers("rms_att_weight", *matrices, "rms_ffn_weight")]
        order += [*of_layers(*feed_forward), weights["rms_final_weight"], *angles]
    else:
        content = struct.pack("<Ii7iB", MAGIC, version, *numbers, n_vocab, n_ctx, shared).ljust(256, b"\0")
        order = [*of_layers("rms_att_weight", "rms_ffn_weight"), weights["rms_final_weight"]]
        order += [weights["token_embedding_table"], *of_layers(*matrices, *feed_forward)]
    if not shared:
        order.append(weights["wcls"])
    return content + b"".join(array.tobytes() for array in order), weights


@any_settings
@given(
    version=st.sampled_from([0, 1]),
    head=st.sampled_from([2, 4]),
    hidden=st.integers(1, 5),
    n_layers=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 3), (3, 3)]),
    n_vocab=st.integers(1, 9),
    n_ctx=st.integers(1, 9),
    shared=st.booleans(),
)
def test_models(tmp_path, version, head, hidden, n_layers, heads, n_vocab, n_ctx, shared):
    content, weights = model_file(version, head, hidden, n_layers, *heads, n_vocab, n_ctx, shared)
    (tmp_path / "m.bin").write_bytes(content)
    config, tensors = read_llama2c(tmp_path / "m.bin")
    assert config == {
        "n_embd": head * heads[0],
        "n_ff": hidden,
        "n_layers": n_layers,
        "n_heads": heads[0],
        "n_kv_heads": heads[1],
        "n_vocab": n_vocab,
        "n_ctx": n_ctx,
        "shared_classifier": shared,
    }
    assert tensors.keys() == weights.keys()
    for name, tensor in tensors.items():
        assert (tensor.name, tensor.format) == (name, FORMATS["F32"])
        assert mapped(tensor.raw)
        np.testing.assert_array_equal(tensor.dequantize(), weights[name], strict=True)


def test_a_real_model(shared):
    config, tensors = read_llama2c(shared / "assets" / "stories260K.bin")
    assert (config["n_embd"], config["n_layers"], config["n_vocab"], config["shared_classifier"]) == (64, 5, 512, True)
    assert len(tensors) == 2 + 5 * 9
    assert sum(tensor.n_bytes for tensor in tensors.values()) == 4 * 260_032
    for name, tensor in tensors.items():
        x = tensor.dequantize()
        # The weights of a norm are all positive and those of a matrix around 0: a wrong place would show here.
        assert (0.3 < x.min() < x.mean() < 2) if "rms" in name else abs(x.mean()) < 0.03 < x.std()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("field", "number", "message"),
    [
        (0, 0, "its n_embd is 0; expected 1 to"),
        (0, 9, "its n_embd, 9, is not a multiple of its n_heads, 4"),
        (0, 4, "its heads have 1 dimensions; expected an even number"),
        (0, -8, "its n_embd is -8"),
        (1, 2**31 - 1, "its n_ff is 2147483647"),
        (1, 4, "needs .* bytes, the file has"),
        (2, 2**24, "its n_layers is 16777216; expected 1 to 1024"),
        (2, 1024, "needs .* bytes, the file has"),
        (2, -1, "its n_layers is -1"),
        (3, 0, "its n_heads is 0"),
        (4, 0, "its n_kv_heads is 0"),
        (4, 3, "its n_heads, 4, is not a multiple of its n_kv_heads, 3"),
        (5, 0, "its n_vocab is 0"),
        (5, -(2**31), "its n_vocab is -?2147483648"),
        (5, 6, "needs .* bytes, the file has"),
        (6, 0, "its n_ctx is 0"),
        (6, 2**30, "its n_ctx is 1073741824"),
    ],
)
def test_numbers_that_cannot_be(tmp_path, version, field, number, message):
    content = bytearray(model_file(version)[0])
    struct.pack_into("<i", content, 4 * field + 8 * version, number)
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_llama2c(tmp_path / "m.bin")
    assert str(tmp_path / "m.bin") in str(caught.value)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:-4], lambda c: c + b"\0", lambda c: c[:100]])
def test_the_size_must_be_exact(tmp_path, version, change):
    content = model_file(version)[0]
    (tmp_path / "m.bin").write_bytes(change(content))
    with pytest.raises(FormatError, match=f"needs {len(content)} bytes, the file has"):
        read_llama2c(tmp_path / "m.bin")


def test_a_shared_classifier_is_shared_or_not(tmp_path):
    content = bytearray(model_file(1)[0])
    content[36] = 2
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(FormatError, match="shared classifier is 2; expected 0 or 1"):
        read_llama2c(tmp_path / "m.bin")


@pytest.mark.parametrize(("version", "name"), [(2, r"2 \(int8\)"), (3, "3"), (0, "0"), (-1, "-1")])
def test_other_versions_are_refused_by_name(tmp_path, version, name):
    (tmp_path / "m.bin").write_bytes(struct.pack("<Ii", MAGIC, version) + bytes(300))
    with pytest.raises(UnsupportedError, match=f"llama2.c version {name} is not supported"):
        read_llama2c(tmp_path / "m.bin")


@pytest.mark.parametrize("content", [b"", b"1", bytes(36)])
def test_files_that_are_too_small(tmp_path, content):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(FormatError, match=r"is empty|too few"):
        read_llama2c(tmp_path / "m.bin")
    with pytest.raises(FormatError, match=r"is empty|too few"):
        read_llama2c_tokenizer(tmp_path / "m.bin", 5)


def test_missing_files(tmp_path):
    with pytest.raises(FileProblem, match="does not exist"):
        read_llama2c(tmp_path / "m.bin")
    with pytest.raises(FileProblem, match="does not exist"):
        read_llama2c_tokenizer(tmp_path / "m.bin", 5)


def tokenizer_file(tokens, longest=None):
    """As llama2.c's tokenizer.py writes it."""
    content = struct.pack(
        "<I", max(map(len, (token for token, _ in tokens)), default=0) if longest is None else longest
    )
    return content + b"".join(struct.pack("<fI", score, len(token)) + token for token, score in tokens)


@any_settings
@given(
    st.lists(st.tuples(st.binary(max_size=20), st.floats(width=32, allow_nan=False, allow_infinity=False)), max_size=20)
)
def test_tokenizers(tmp_path, wanted):
    (tmp_path / "t.bin").write_bytes(tokenizer_file(wanted))
    tokens, scores = read_llama2c_tokenizer(tmp_path / "t.bin", len(wanted))
    assert tokens == [token for token, _ in wanted]
    assert scores.dtype == np.float32
    assert scores.tolist() == [score for _, score in wanted]


def test_a_real_tokenizer(shared):
    tokens, scores = read_llama2c_tokenizer(shared / "assets" / "tok512.bin", 512)
    assert tokens[:4] == [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x00>"]
    assert len(set(tokens)) == 512
    assert scores[:259].tolist() == [0] * 259
    assert b" the" in tokens


TOKENS = [(b"a", 0.0), (b"bc", -1.0), (b"", -2.0)]


@pytest.mark.parametrize(
    ("content", "n_vocab", "message"),
    [
        (tokenizer_file(TOKENS), 4, "has 31 bytes, too few for 4 tokens"),
        (tokenizer_file(TOKENS), 2, "8 bytes follow its 2 tokens: does it belong to this model"),
        (tokenizer_file(TOKENS), 2**31 - 1, "too few for 2147483647 tokens"),
        (tokenizer_file(TOKENS, longest=1), 3, "token 1 has 2 bytes; the longest has 1"),
        (tokenizer_file(TOKENS, longest=2**31), 3, "longest token claims 2147483648 bytes"),
        (tokenizer_file(TOKENS)[:-1], 3, "ends before token 2 of 3"),
        (tokenizer_file(TOKENS)[:-9], 3, "has 22 bytes, too few for 3 tokens"),
        (tokenizer_file([(b"a", 0.0), (b"b", float("nan"))]), 2, "the score of token 1 is not finite"),
        (tokenizer_file([(b"a", float("inf"))]), 1, "the score of token 0 is not finite"),
        (struct.pack("<Ifi", 5, 0, -1), 1, "token 0 has -1 bytes"),
        (struct.pack("<Ifi", 5, 0, 5), 1, "token 0 has 5 bytes; the longest has 5, 0 are left"),
        (bytes(16) + bytes(2**16), 1, "bytes follow its 1 tokens"),
    ],
)
def test_hostile_tokenizers(tmp_path, content, n_vocab, message):
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_llama2c_tokenizer(tmp_path / "t.bin", n_vocab)
    assert str(caught.value).startswith(str(tmp_path / "t.bin"))


def test_a_huge_file_is_no_tokenizer(tmp_path):
    with open(tmp_path / "t.bin", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="a tokenizer has at most"):
        read_llama2c_tokenizer(tmp_path / "t.bin", 1 << 30)


SMALL = [model_file(0)[0], model_file(1, shared=False)[0], tokenizer_file([(bytes([i]), -i) for i in range(40)])]
mutations = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 300), st.integers(1, 255)),
    st.tuples(st.just("number"), st.integers(0, 300), small_or_huge),
    st.tuples(st.just("delete"), st.integers(0, 300), st.integers(1, 64)),
    st.tuples(st.just("cut"), st.integers(0, 2000), st.none()),
    st.tuples(st.just("repeat"), st.integers(0, 300), st.integers(1, 200)),
)


@settings(any_settings, max_examples=300)
@given(st.sampled_from(SMALL), st.lists(mutations, min_size=1, max_size=3))
def test_mutated_files(tmp_path, content, changes):
    for change in changes:
        content = mutate(content, *change)
    (tmp_path / "m.bin").write_bytes(content)
    try:
        for tensor in read_llama2c(tmp_path / "m.bin")[1].values():
            assert tensor.dequantize().shape == tensor.shape
    except EdgellmError as error:
        assert "\n" not in str(error)
    try:
        tokens, scores = read_llama2c_tokenizer(tmp_path / "m.bin", 40)
        assert len(tokens) == len(scores) == 40
    except EdgellmError as error:
        assert "\n" not in str(error)
