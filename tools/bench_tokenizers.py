"""How fast texts become tokens on one core: edgellm beside `tokenizers`, whose ids are compared.

    python tools/bench_tokenizers.py MODEL.gguf [MODEL.gguf ...] [--text FILE] [--rounds 3]

`first` is a text that a new tokenizer has never seen, `again` the same once more, when its words are known; both in
megabytes a second of CPU time, medians of rounds in turns. Without --text, these are this repository's documents.
Byte-level vocabularies are given to `tokenizers` with the patterns that edgellm has for them; for others, SentencePiece
among them, there is nothing beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.formats.gguf import GGUFFile
from edgellm.text import load_tokenizer
from edgellm.text.pretokenizers import pretokenizer
from edgellm.text.vocabulary import TokenType

ROOT = Path(__file__).parents[1]
PREFIX = "tokenizer.ggml."
Encode = Callable[[str], list[int]]


def ordinary() -> str:
    paths = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
    return "\n\n".join(path.read_text(encoding="utf-8") for path in paths)


def by_edgellm(metadata: Mapping[str, Any]) -> Encode:
    return load_tokenizer(metadata).encode


def by_tokenizers(metadata: Mapping[str, Any]) -> Encode | None:
    if metadata[f"{PREFIX}model"] != "gpt2":
        return None
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    rule = pretokenizer(str(metadata[f"{PREFIX}pre"]))
    vocabulary = {str(token): index for index, token in enumerate(metadata[f"{PREFIX}tokens"])}
    merges = [(left, right) for left, right in (str(merge).split(" ") for merge in metadata[f"{PREFIX}merges"])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    types = np.asarray(metadata[f"{PREFIX}token_type"])  # those of users are found in any text
    named = [str(metadata[f"{PREFIX}tokens"][i]) for i in np.flatnonzero(types == TokenType.USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in named])
    return lambda text: tokenizer.encode(text).ids


def megabytes_per_second(encode: Encode, text: str) -> float:
    started = time.process_time()
    encode(text)
    return len(text.encode()) / (time.process_time() - started) / 1e6


def measure(path: Path, text: str, rounds: int) -> None:
    with GGUFFile.open(path) as file:
        metadata = dict(file.metadata)
    found: dict[str, list[float]] = {}
    same = "nothing beside"
    for _ in range(rounds):
        sides = {"edgellm": by_edgellm(metadata), "tokenizers": by_tokenizers(metadata)}
        for side, encode in sides.items():
            if encode is None:
                continue
            encode("Warm up, déjà vu; qzxjkw.")
            found.setdefault(f"{side} first", []).append(megabytes_per_second(encode, text))
            found.setdefault(f"{side} again", []).append(megabytes_per_second(encode, text))
        ours, theirs = sides["edgellm"], sides["tokenizers"]
        if theirs is not None:
            same = "the same ids" if ours is not None and ours(text) == theirs(text) else "OTHER IDS"
    figures = ", ".join(f"{name} {statistics.median(values):.1f} MB/s" for name, values in found.items())
    print(f"{path.name}: {figures} ({same})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    text = args.text.read_text(encoding="utf-8") if args.text else ordinary()
    print(f"{len(text.encode()) / 1e6:.1f} MB of text")
    for path in args.models:
        measure(path, text, args.rounds)


if __name__ == "__main__":
    main()
