"""A llama2.c model and its tokenizer as metadata and tensors of a GGUF file.

llama2.c holds Llama's weights as Meta published them, with rotary pairs as neighbours: GGUF's own order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.arch import ARCHITECTURES
from edgellm.convert.parts import Part
from edgellm.convert.source import Source
from edgellm.errors import FileProblem, UsageError
from edgellm.formats.llama2c import read_llama2c, read_llama2c_tokenizer
from edgellm.text import load_tokenizer
from edgellm.text.vocabulary import TokenType

# What llama2.c leaves unsaid, as its run.c computes it.
EPSILON, ROPE_BASE = 1e-5, 10000.0
UNKNOWN, BOS, EOS = 0, 1, 2

_ONCE = {"token_embd": "token_embedding_table", "output_norm": "rms_final_weight", "output": "wcls"}
_PER_LAYER = {
    "attn_norm": "rms_att_weight",
    "attn_q": "wq",
    "attn_k": "wk",
    "attn_v": "wv",
    "attn_output": "wo",
    "ffn_norm": "rms_ffn_weight",
    "ffn_gate": "w1",
    "ffn_down": "w2",
    "ffn_up": "w3",
}


def read_llama2c_model(path: Path, tokenizer: Path | None) -> Source:
    """Open a model file and its tokenizer; without `tokenizer`, the tokenizer.bin or tokNUMBER.bin beside it.

    Raises FileProblem, FormatError, UsageError when no tokenizer is found.
    """
    shape, tensors = read_llama2c(path)
    tokenizer = tokenizer or _tokenizer_beside(path, shape["n_vocab"])
    try:
        vocabulary = _vocabulary(*read_llama2c_tokenizer(tokenizer, shape["n_vocab"]))
        load_tokenizer(vocabulary).encode("a", add_special=True)  # what is wrong shows now
    except FileProblem as problem:
        raise type(problem)(f"{tokenizer}: {str(problem).removeprefix(f'{tokenizer}: ')}") from None
    metadata = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": path.stem,
        **{f"llama.{key}": value for key, value in _hyperparameters(shape).items()},
        **vocabulary,
    }
    parts = _parts(tensors, shape["n_layers"])
    llama = ARCHITECTURES["llama"]
    try:
        llama.check(llama.configure(metadata), {part.name: part.tensor for part in parts})
    except FileProblem as problem:
        raise type(problem)(f"{path}: {problem}") from None
    return Source(metadata, parts)


def _tokenizer_beside(path: Path, n_vocab: int) -> Path:
    names = ("tokenizer.bin", f"tok{n_vocab}.bin")
    found = [path.with_name(name) for name in names if path.with_name(name).is_file()]
    if not found:
        raise UsageError(f"{path} needs its tokenizer; put {' or '.join(names)} beside it, or name it (--tokenizer)")
    return found[-1]


def _hyperparameters(shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_count": shape["n_layers"],
        "context_length": shape["n_ctx"],
        "embedding_length": shape["n_embd"],
        "feed_forward_length": shape["n_ff"],
        "attention.head_count": shape["n_heads"],
        "attention.head_count_kv": shape["n_kv_heads"],
        "attention.layer_norm_rms_epsilon": EPSILON,
        "rope.dimension_count": shape["n_embd"] // shape["n_heads"],
        "rope.freq_base": ROPE_BASE,
        "vocab_size": shape["n_vocab"],
    }


def _vocabulary(tokens: list[bytes], scores: np.ndarray) -> dict[str, Any]:
    """Its tokenizer is one of SentencePiece, printed: spaces for U+2581, and line breaks around <s> and </s>."""
    spelled: list[bytes] = []
    types = []
    for token_id, token in enumerate(tokens):
        if token_id in (UNKNOWN, BOS, EOS):
            spelled.append((b"<unk>", b"<s>", b"</s>")[token_id])
            types.append(TokenType.UNKNOWN if token_id == UNKNOWN else TokenType.CONTROL)
        elif re.fullmatch(rb"<0x[0-9A-F]{2}>", token):
            spelled.append(token)
            types.append(TokenType.BYTE)
        else:
            spelled.append(token.replace(b" ", "\u2581".encode()))
            types.append(TokenType.NORMAL)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": spelled,
        "tokenizer.ggml.scores": np.asarray(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }


def _parts(tensors: dict[str, Any], n_layers: int) -> list[Part]:
    names = {f"{ours}.weight": name for ours, name in _ONCE.items() if name in tensors}
    for layer in range(n_layers):
        names |= {f"blk.{layer}.{ours}.weight": f"layers.{layer}.{name}" for ours, name in _PER_LAYER.items()}
    return [Part(ours, tensors[name]) for ours, name in names.items()]
