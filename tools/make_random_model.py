"""Write a random-weight Llama-shaped GGUF of a real size, for measuring speed without downloading weights.

    python tools/make_random_model.py OUT.gguf --size 1.1b --type Q4_K_M
    python tools/make_random_model.py OUT.gguf --size experts && edgellm bench OUT.gguf --threads 2

The second has eight experts, of which each token takes one: `bench` says what share of the machine's read limit its
decode has, of the bytes of that one expert and the rest.

Sizes and types are those of real files: Q4_K_M mixes Q4_K and Q6_K as llama.cpp does; any format's name makes
all matrices of that format. Weights are normally distributed and well scaled, so that nothing overflows or
vanishes. One tensor at a time is in memory. The vocabulary is a valid SentencePiece one of 32,000 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from string import ascii_lowercase, printable
from typing import Any

import numpy as np

from edgellm.formats.gguf import GGUFWriter
from edgellm.quants import FORMATS, BlockFormat

N_VOCAB = 32_000
POOL_BLOCKS = 4096  # different blocks per format; a tensor draws from them, since quantizing takes long
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1  # token types of GGUF


@dataclass(frozen=True)
class Size:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0
    n_used: int = 0


SIZES = {
    "tiny": Size(2, 256, 512, 4, 2),
    "1.1b": Size(22, 2048, 5632, 32, 4),
    "7b": Size(32, 4096, 14336, 32, 8),
    "experts": Size(8, 2048, 4096, 32, 4, n_experts=8, n_used=1),
}


def metadata(name: str, size: Size) -> dict[str, Any]:
    tokens, scores, kinds = vocabulary()
    experts = {"llama.expert_count": size.n_experts, "llama.expert_used_count": size.n_used} if size.n_experts else {}
    return experts | {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": size.n_layers,
        "llama.context_length": 8192,
        "llama.embedding_length": size.n_embd,
        "llama.feed_forward_length": size.n_ff,
        "llama.attention.head_count": size.n_heads,
        "llama.attention.head_count_kv": size.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": size.n_embd // size.n_heads,
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types: the specials, all bytes, then pieces of growing length and falling score."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    letters = itertools.chain.from_iterable(itertools.product(ascii_lowercase, repeat=n) for n in (2, 3))
    words = ("".join(word) for word in letters)
    pieces = itertools.chain(printable[:-6], "▁", (start + word for word in words for start in ("", "▁")))
    tokens = special + list(itertools.islice(pieces, N_VOCAB - len(special)))
    scores = [0.0] * len(special) + [-float(rank) for rank in range(N_VOCAB - len(special))]
    return tokens, scores, kinds + [NORMAL] * (N_VOCAB - len(special))


def tensors(size: Size, type_name: str, rng: np.random.Generator) -> Iterator[tuple]:
    n_kv = size.n_embd // size.n_heads * size.n_kv_heads
    mixed = type_name == "Q4_K_M"
    usual = FORMATS["Q4_K" if mixed else type_name]
    better = FORMATS["Q6_K" if mixed else type_name]

    def matrix(name: str, n_out: int, n_in: int, kind: BlockFormat = usual, n: int = 0) -> tuple:
        """n: how many of them are stacked; 0 is a matrix by itself."""
        shape = (n, n_out, n_in) if n else (n_out, n_in)
        return f"{name}.weight", shape, kind, partial(random_rows, kind, max(1, n) * n_out, n_in, rng)

    def norm(name: str) -> tuple:
        return f"{name}.weight", (size.n_embd,), FORMATS["F32"], np.ones(size.n_embd, np.float32)

    yield matrix("token_embd", N_VOCAB, size.n_embd)
    for layer in range(size.n_layers):
        favoured = better if uses_more_bits(layer, size.n_layers) else usual
        yield norm(f"blk.{layer}.attn_norm")
        yield matrix(f"blk.{layer}.attn_q", size.n_embd, size.n_embd)
        yield matrix(f"blk.{layer}.attn_k", n_kv, size.n_embd)
        yield matrix(f"blk.{layer}.attn_v", n_kv, size.n_embd, favoured)
        yield matrix(f"blk.{layer}.attn_output", size.n_embd, size.n_embd)
        yield norm(f"blk.{layer}.ffn_norm")
        n, suffix = size.n_experts, "_exps" if size.n_experts else ""
        if n:
            yield matrix(f"blk.{layer}.ffn_gate_inp", n, size.n_embd, FORMATS["F32"])
        yield matrix(f"blk.{layer}.ffn_gate{suffix}", size.n_ff, size.n_embd, n=n)
        yield matrix(f"blk.{layer}.ffn_up{suffix}", size.n_ff, size.n_embd, n=n)
        yield matrix(f"blk.{layer}.ffn_down{suffix}", size.n_embd, size.n_ff, favoured, n)
    yield norm("output_norm")
    yield matrix("output", N_VOCAB, size.n_embd, better)


def uses_more_bits(layer: int, n_layers: int) -> bool:
    """llama.cpp's choice for attn_v and ffn_down: first and last eighth of layers, every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def random_rows(block_format: BlockFormat, n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[n_out, row_bytes] of weights around 0, scaled so that the product keeps its input's size."""
    n_blocks = n_out * block_format.row_bytes(n_in) // block_format.block_bytes
    pool = random_blocks(block_format, 1 / math.sqrt(n_in))
    return pool[rng.integers(0, len(pool), n_blocks)].reshape(n_out, -1)


@cache
def random_blocks(block_format: BlockFormat, deviation: float) -> np.ndarray:
    """uint8[POOL_BLOCKS, block_bytes]"""
    weights = np.random.default_rng(1).normal(0, deviation, (POOL_BLOCKS, block_format.block_size))
    return block_format.quantize(weights.astype(np.float32))


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--type", choices=["Q4_K_M", *FORMATS], default="Q4_K_M", metavar="TYPE")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    size = SIZES[args.size]
    name = f"random {args.size} {args.type}"
    weights = tensors(size, args.type, np.random.default_rng(args.seed))
    GGUFWriter(args.out, metadata(name, size), weights).write()
    print(f"{args.out}: {args.out.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
