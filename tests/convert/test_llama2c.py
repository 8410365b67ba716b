"""llama2.c models: the real one of 260 thousand weights tells the story that its own program tells."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.formats.gguf import GGUFFile

N_EMBD, N_FF, N_LAYERS, N_HEADS, N_KV_HEADS, N_VOCAB, N_CTX = 48, 72, 2, 6, 3, 300, 64


def write_model(folder: Path) -> Path:
    """A random model of heads of 8 dimensions, and its tokenizer beside it."""
    rng = np.random.default_rng(2)
    head_dim = N_EMBD // N_HEADS
    kv_width = head_dim * N_KV_HEADS
    sizes = [N_VOCAB * N_EMBD, N_LAYERS * N_EMBD, N_LAYERS * N_EMBD**2, N_LAYERS * kv_width * N_EMBD,
             N_LAYERS * kv_width * N_EMBD, N_LAYERS * N_EMBD**2, N_LAYERS * N_EMBD, N_LAYERS * N_FF * N_EMBD,
             N_LAYERS * N_FF * N_EMBD, N_LAYERS * N_FF * N_EMBD, N_EMBD, N_CTX * head_dim]  # fmt: skip
    header = struct.pack("<7i", N_EMBD, N_FF, N_LAYERS, N_HEADS, N_KV_HEADS, N_VOCAB, N_CTX)
    weights = rng.standard_normal(sum(sizes), np.float32).tobytes()
    path = folder / "model.bin"
    path.write_bytes(header + weights)
    tokens = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b" ", b" a", b"a", b"b"]
    tokens += [b"t%d" % i for i in range(N_VOCAB - len(tokens))]
    entries = b"".join(struct.pack("<fi", -float(i), len(token)) + token for i, token in enumerate(tokens))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<I", max(map(len, tokens))) + entries)
    return path


def test_a_model_and_the_tokenizer_beside_it(tmp_path: Path) -> None:
    convert(write_model(tmp_path), tmp_path / "out.gguf")
    with edgellm.load(tmp_path / "out.gguf") as model:
        assert (model.n_vocab, model.config.head_dim, model.config.n_kv_heads) == (N_VOCAB, 8, N_KV_HEADS)
        assert np.isfinite(model.logits([1, 5, 9])).all()
        assert model.detokenize(model.tokenize("a b a", add_special=True), skip_special=True) == "a b a"


def test_tokens_are_spelled_as_sentencepiece_does(tmp_path: Path) -> None:
    convert(write_model(tmp_path), tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        tokens, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
        assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and tokens[259:262] == ["▁", "▁a", "a"]
        assert types[:4].tolist() == [2, 3, 3, 6] and types[259] == 1


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (tmp_path / "tokenizer.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(UsageError, match=r"tokenizer\.bin or tok300\.bin"):
        convert(path, tmp_path / "out.gguf")
    convert(path, tmp_path / "out.gguf", tokenizer=tmp_path / "elsewhere.bin")


@pytest.mark.parametrize("cut", [0, 10, 28, 1000, -4])
def test_a_file_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = write_model(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileProblem, match=r"model\.bin"):
        convert(path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("command", [["-p", ""], ["-p", "Once upon a time"]])
def test_the_real_story(shared: Path, tmp_path: Path, command: list[str]) -> None:
    """Greedily, 200 tokens of stories260K, through the commands that people type."""
    assets, path = shared / "assets", tmp_path / "stories.gguf"
    story = (assets / "stories260K.expected.txt").read_text()
    run = [sys.executable, "-m", "edgellm"]
    source = [str(assets / "stories260K.bin"), "--tokenizer", str(assets / "tok512.bin")]
    subprocess.run([*run, "convert", *source, "-o", str(path), "--type", "F32"], check=True, capture_output=True)
    with GGUFFile.open(path) as file:
        assert {str(tensor.format) for tensor in file.tensors.values()} == {"F32"}
    answer = subprocess.run(
        [*run, "run", str(path), "--raw", *command, "-n", "200", "--temp", "0"],
        check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    assert (command[1] + answer.removesuffix("\n")).startswith(story)
    if not command[1]:
        assert answer == story + "\n"


def test_a_tokenizer_that_cannot_work(tmp_path: Path) -> None:
    """It is named at once, and no file is written that could not be loaded."""
    path = write_model(tmp_path)
    good = (tmp_path / "tokenizer.bin").read_bytes()
    assert good.count(b"t0") == 1
    (tmp_path / "tokenizer.bin").write_bytes(good.replace(b"t0", b"t1"))
    with pytest.raises(FormatError, match=r"tokenizer\.bin: .*'t1'"):
        convert(path, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))
