"""Folders with small tokenizers of every kind, made by the programs that read them: the originals to compare with."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgellm.text.bpe import BYTE_OF_CHAR
from tests.text import oracles

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<tool>", "  "]


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def train_byte_level(pre: str, vocab_size: int = 700) -> Tokenizer:
    """A byte-level BPE tokenizer without special tokens, which cuts as the rule `pre`."""
    original = Tokenizer(models.BPE())
    original.pre_tokenizer = oracles.ORIGINAL_RULES[pre]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    original.train_from_iterator(oracles.CORPUS, trainer)
    original.model.ignore_merges = pre in oracles.IGNORE_MERGES
    if pre in oracles.NFC:
        original.normalizer = normalizers.NFC()
    return original


def byte_level(folder: Path, pre: str, add_bos: bool = False) -> Tokenizer:
    """tokenizer.json of byte-level BPE."""
    original = train_byte_level(pre)
    add_specials(original)
    if add_bos:
        bos = SPECIAL[0], original.token_to_id(SPECIAL[0])
        template = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos]
        )
        original.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    original.save(str(folder / "tokenizer.json"))
    return original


def add_specials(original: Tokenizer) -> None:
    original.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    original.add_tokens([AddedToken(text, normalized=False) for text in ADDED])


def ranked_tokens(pre: str) -> list[bytes]:
    """Tokens in the order of their ranks, as a tiktoken file lists them."""
    vocab = train_byte_level(pre).get_vocab()
    return [bytes(BYTE_OF_CHAR[char] for char in token) for token in sorted(vocab, key=vocab.__getitem__)]


def tiktoken_file(path: Path, tokens: list[bytes]) -> None:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))


def tekken(path: Path, tokens: list[bytes], n_special: int = 30, **config: Any) -> None:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*tokens, b"one more than models use"])
    ]
    settings = {
        "pattern": oracles.TEKKEN,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(tokens) + n_special,
        "default_num_special_tokens": n_special,
        "version": "v3",
    }
    write_json(path, {"config": settings | config, "vocab": vocab})


def sentencepiece(folder: Path, **options: Any) -> Any:
    """tokenizer.model of SentencePiece; the processor that reads it."""
    _, original = oracles.train_sentencepiece(**options)
    (folder / "tokenizer.model").write_bytes(original.serialized_model_proto())
    return original


def of_sentencepiece(folder: Path, space_prefix: bool = True, metaspace: bool = False) -> Tokenizer:
    """tokenizer.json as `transformers` makes it of a SentencePiece model: every pair that makes a token is a merge."""
    _, model = oracles.train_sentencepiece(space_prefix=space_prefix)
    n = model.get_piece_size()
    n_control = next(i for i in range(n) if model.is_byte(i))
    # `tokenizers` and SentencePiece look for user-defined pieces at different times; here they are control tokens.
    control = {i: model.id_to_piece(i) if i < 5 else f"<control{i}>" for i in range(n_control)}
    vocab = {control.get(i, model.id_to_piece(i)): i for i in range(n)}
    normal = {piece: model.get_score(i) for piece, i in vocab.items() if i >= n_control and not model.is_byte(i)}
    merges = [
        (-score, -i, (piece[:i], piece[i:]))
        for piece, score in normal.items()
        for i in range(1, len(piece))
        if piece[:i] in normal and piece[i:] in normal
    ]
    pairs = [pair for *_, pair in sorted(merges)]
    original = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        original.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first" if space_prefix else "never", split=False)
    else:
        prefix = [normalizers.Prepend("▁")] if space_prefix else []
        original.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    original.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control.values()])
    original.save(str(folder / "tokenizer.json"))
    return original


def trained_spaces(folder: Path) -> Tokenizer:
    """tokenizer.json trained by `tokenizers`: one merge for each token."""
    original = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    original.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    original.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", split=True)  # for training only
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=names)
    original.train_from_iterator(oracles.CORPUS, trainer)
    original.pre_tokenizer = None
    original.save(str(folder / "tokenizer.json"))
    values = read_json(folder / "tokenizer.json")
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < 3]
    write_json(folder / "tokenizer.json", values)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def word_pieces(folder: Path, lowercase: bool = True) -> Tokenizer:
    """tokenizer.json of BERT's kind, and vocab.txt beside it."""
    original = Tokenizer(models.WordPiece({}, unk_token="[UNK]", max_input_chars_per_word=100))
    original.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    original.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    original.train_from_iterator(
        oracles.CORPUS, trainers.WordPieceTrainer(vocab_size=500, show_progress=False, special_tokens=special)
    )
    original.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    original.decoder = decoders.WordPiece()
    original.save(str(folder / "tokenizer.json"))
    vocab = original.get_vocab()
    lines = sorted(vocab, key=vocab.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return original
