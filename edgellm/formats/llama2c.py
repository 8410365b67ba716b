"""llama2.c's files: a model (`stories15M.bin`) and its tokenizer (`tokenizer.bin`), little-endian throughout.

A model, as `run.c` reads it (version 0), has no magic:

    dim · hidden_dim · n_layers · n_heads · n_kv_heads · vocab_size · seq_len   7 times i32
    the weights, float32, each kind for all layers, in the order of `_ORDER_0`

A negative vocab_size says that the classifier has weights of its own; they follow two tables of rotary angles,
which nobody reads any more. Version 1 starts with a magic, the version, the same seven numbers and a byte that says
whether the classifier is shared; its weights start at byte 256, with the norms first and without those tables.

A tokenizer is the longest token's length u32, then for each token its score f32, its length i32 and its bytes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.mapped import map_file, view_tensor
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = 256  # of version 1
SHARED_AT = 36  # its byte for a shared classifier
MAX_DIM = 1 << 24
MAX_LAYERS = 1 << 10
MAX_TOKEN_BYTES = 1 << 16
MAX_TOKENIZER_BYTES = 64 << 20

_CONFIG = struct.Struct("<7i")
_MAGIC_AND_VERSION = struct.Struct("<Ii")
_TOKEN = struct.Struct("<fi")
_U32 = struct.Struct("<I")

_NAMES = ("n_embd", "n_ff", "n_layers", "n_heads", "n_kv_heads", "n_vocab", "n_ctx")

# Kinds of weights in the order of the file.
_ROPE_TABLES = ("freq_cis_real", "freq_cis_imag")
_MATRICES = ("wq", "wk", "wv", "wo")
_FEED_FORWARD = ("w1", "w2", "w3")
_ORDER_0: tuple[str, ...] = (
    *("token_embedding_table", "rms_att_weight", *_MATRICES, "rms_ffn_weight", *_FEED_FORWARD, "rms_final_weight"),
    *(*_ROPE_TABLES, "wcls"),
)
_ORDER_1: tuple[str, ...] = (
    *("rms_att_weight", "rms_ffn_weight", "rms_final_weight", "token_embedding_table", *_MATRICES, *_FEED_FORWARD),
    "wcls",
)


def read_llama2c(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a model file, versions 0 and 1.

    The configuration has n_embd, n_ff, n_layers, n_heads, n_kv_heads, n_vocab, n_ctx (int) and shared_classifier
    (bool). The weights are F32 views of the mapped file, by the names that `run.c` gives them:

        token_embedding_table [n_vocab, n_embd]     rms_final_weight [n_embd]     wcls [n_vocab, n_embd], unless shared
        layers.I.rms_att_weight, layers.I.rms_ffn_weight [n_embd]     layers.I.wq, layers.I.wo [n_embd, n_embd]
        layers.I.wk, layers.I.wv [n_kv_heads * head, n_embd]          layers.I.w1, layers.I.w3 [n_ff, n_embd]
        layers.I.w2 [n_embd, n_ff]

    FileProblem when the file is missing or unreadable; FormatError when its numbers cannot be or its size is not
    exactly what they need; UnsupportedError for version 2 (int8) and later.
    """
    data = map_file(path, "a llama2.c model")
    try:
        config, order, start = _read_header(data)
        places = _places(config, order)
        needed = start + 4 * sum(math.prod(shape) for _, shape in places)
        if needed != len(data):
            said = ", ".join(f"{name} {config[name]}" for name in _NAMES)
            raise FormatError(f"its header ({said}) needs {needed} bytes, the file has {len(data)}")
    except FileProblem as problem:
        raise type(problem)(f"{path}: {problem}") from None
    tensors = {}
    for name, shape in places:
        end = start + 4 * math.prod(shape)
        if name not in _ROPE_TABLES:
            tensors[name] = view_tensor(name, shape, "F32", data[start:end])
        start = end
    return config, tensors


def _read_header(data: NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """The checked configuration, the kinds of weights in their order, and where they start."""
    if len(data) <= SHARED_AT:
        raise FormatError(f"the file has {len(data)} bytes, too few for a llama2.c model")
    magic, version = _MAGIC_AND_VERSION.unpack_from(data.data)
    if magic != MAGIC:
        *numbers, n_vocab, n_ctx = _CONFIG.unpack_from(data.data)
        shared, numbers = n_vocab > 0, [*numbers, abs(n_vocab), n_ctx]
        order, start = _ORDER_0, _CONFIG.size
    elif version == 1:
        numbers = list(_CONFIG.unpack_from(data.data, _MAGIC_AND_VERSION.size))
        flag = int(data[SHARED_AT])
        if flag > 1:
            raise FormatError(f"its byte for a shared classifier is {flag}; expected 0 or 1")
        shared, order, start = bool(flag), _ORDER_1, HEADER_BYTES
    else:
        kind = "2 (int8)" if version == 2 else str(version)
        raise UnsupportedError(f"llama2.c version {kind} is not supported, only 0 and 1; export it in float32")
    config = dict(zip(_NAMES, numbers, strict=True))
    _check_config(config)
    if shared:
        order = tuple(kind for kind in order if kind != "wcls")
    return {**config, "shared_classifier": shared}, order, start


def _check_config(config: dict[str, int]) -> None:
    for name, number in config.items():
        limit = MAX_LAYERS if name == "n_layers" else MAX_DIM
        if not 1 <= number <= limit:
            raise FormatError(f"its {name} is {number}; expected 1 to {limit}: is it a llama2.c model?")
    for name, part in (("n_embd", "n_heads"), ("n_heads", "n_kv_heads")):
        if config[name] % config[part]:
            raise FormatError(f"its {name}, {config[name]}, is not a multiple of its {part}, {config[part]}")
    if config["n_embd"] // config["n_heads"] % 2:
        raise FormatError(f"its heads have {config['n_embd'] // config['n_heads']} dimensions; expected an even number")


def _places(config: dict[str, Any], order: tuple[str, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weights in the order of the file."""
    width, n_ff, n_vocab = config["n_embd"], config["n_ff"], config["n_vocab"]
    head = width // config["n_heads"]
    kv_width = head * config["n_kv_heads"]
    norm, square, key, up = (width,), (width, width), (kv_width, width), (n_ff, width)
    per_layer: dict[str, tuple[int, ...]] = dict(rms_att_weight=norm, wq=square, wk=key, wv=key, wo=square)
    per_layer |= dict(rms_ffn_weight=norm, w1=up, w2=(width, n_ff), w3=up)
    single: dict[str, tuple[int, ...]] = dict.fromkeys(_ROPE_TABLES, (config["n_ctx"], head // 2))
    single |= dict(token_embedding_table=(n_vocab, width), rms_final_weight=norm, wcls=(n_vocab, width))
    places: list[tuple[str, tuple[int, ...]]] = []
    for kind in order:
        if kind in single:
            places.append((kind, single[kind]))
        else:
            places += [(f"layers.{layer}.{kind}", per_layer[kind]) for layer in range(config["n_layers"])]
    return places


def read_llama2c_tokenizer(path: Path, n_vocab: int) -> tuple[list[bytes], NDArray[np.float32]]:
    """The tokens' bytes and their scores, float32[n_vocab], of a `tokenizer.bin` for `n_vocab` tokens.

    FileProblem when it is missing or unreadable; FormatError when it is malformed or has another number of tokens.
    """
    data = map_file(path, "a llama2.c tokenizer")
    try:
        if len(data) > MAX_TOKENIZER_BYTES:
            raise FormatError(f"the file has {len(data)} bytes; a tokenizer has at most {MAX_TOKENIZER_BYTES}")
        return _read_tokens(data.tobytes(), n_vocab)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None


def _read_tokens(data: bytes, n_vocab: int) -> tuple[list[bytes], NDArray[np.float32]]:
    if not _U32.size + n_vocab * _TOKEN.size <= len(data):
        raise FormatError(f"the file has {len(data)} bytes, too few for {n_vocab} tokens")
    (longest,) = _U32.unpack_from(data)
    if longest > MAX_TOKEN_BYTES:
        raise FormatError(f"its longest token claims {longest} bytes; at most {MAX_TOKEN_BYTES} can be")
    tokens, scores = [], np.empty(n_vocab, np.float32)
    at = _U32.size
    for i in range(n_vocab):
        if at + _TOKEN.size > len(data):
            raise FormatError(f"the file ends before token {i} of {n_vocab}")
        scores[i], n_bytes = _TOKEN.unpack_from(data, at)
        at += _TOKEN.size
        if not 0 <= n_bytes <= min(longest, len(data) - at):
            raise FormatError(f"token {i} has {n_bytes} bytes; the longest has {longest}, {len(data) - at} are left")
        tokens.append(data[at : at + n_bytes])
        at += n_bytes
    if at != len(data):
        raise FormatError(f"{len(data) - at} bytes follow its {n_vocab} tokens: does it belong to this model?")
    if not np.isfinite(scores).all():
        raise FormatError(f"the score of token {int(np.argmin(np.isfinite(scores)))} is not finite")
    return tokens, scores
