"""GGUF files made in memory: whole ones with the writer, broken ones by hand."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgellm.formats.gguf import GGUFWriter
from edgellm.quants import FORMATS


def gguf_bytes(metadata: Mapping[str, Any], tensors: Iterable[tuple] = (), version: int = 3) -> bytes:
    file = io.BytesIO()
    GGUFWriter(file, metadata, tensors).write()
    return file.getvalue()[:4] + struct.pack("<I", version) + file.getvalue()[8:]


def tensor(name: str, shape: tuple[int, ...], format_name: str = "F32", seed: int = 0) -> tuple:
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return name, shape, FORMATS[format_name], FORMATS[format_name].quantize(x)


def small_model(version: int = 3) -> bytes:
    """All that real files have, but small: vocabulary, scores, template, tensors of several formats."""
    words = [f"▁token{i}" for i in range(300)]
    metadata = {
        "general.architecture": "llama",
        "general.name": "Small",
        "llama.block_count": 1,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.sliding": np.uint64(2**40),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": np.linspace(-1, 0, 300, dtype=np.float32),
        "tokenizer.ggml.token_type": [1] * 300,
        "tokenizer.ggml.merges": ["a b", "c d", "", "e" * 300],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    tensors = [
        tensor("token_embd.weight", (300, 64), "Q8_0"),
        tensor("blk.0.attn_norm.weight", (64,)),
        tensor("blk.0.attn_q.weight", (64, 64), "Q4_0"),
        tensor("blk.0.ffn_down.weight", (8, 256), "Q4_K"),
        tensor("blk.0.experts.weight", (2, 3, 32), "BF16"),
    ]
    return gguf_bytes(metadata, tensors, version)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry of any value type, right or wrong."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(name: str | bytes, dims: tuple[int, ...], ggml_type: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry in the header, right or wrong; dims in the file's order."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)


def raw_file(
    entries: Iterable[bytes] = (),
    infos: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_metadata: int | None = None,
) -> bytes:
    entries, infos = list(entries), list(infos)
    counts = (
        len(infos) if n_tensors is None else n_tensors,
        len(entries) if n_metadata is None else n_metadata,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries + infos)
    return header + bytes(-len(header) % 32 if data else 0) + data
