"""The original tokenizers, built from the vocabulary of a GGUF file or trained on the spot."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import sentencepiece
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgellm.text.vocabulary import as_bytes

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, and we'll see what they've DONE!",
    "def main(argv):\n    if len(argv) > 1:\n        print('Hello, wörld', argv[1:])\n\n\treturn 0\r\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Übermäßig!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 42 рубля.",
    "いろはにほへと ちりぬるを 我が世誰ぞ 常ならむ。漢字とかな、\uff13\uff14。",
    "नमस्ते दुनिया, आप कैसे हैं? ១២៣ ខ្មែរ e\u0301 n\u0303 ﬁ ½ ² Ⅻ",
    "🦙🦙 emoji 🚀🚀 and 👨\u200d👩\u200d👧 together … “quotes” — dashes «guillemets»",
    "     spaces\u00a0\u2003and   tabs\t\t\tand\n\n\nnewlines   ",
    "thethethe aaaa aaaaaaaa bbbb hahahaha banana bananas!!!???...",
] * 3

# Patterns as the models' own tokenizer.json files hold them, for `tokenizers` (Oniguruma).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_digits = pre_tokenizers.Digits(individual_digits=True)
_digits_gpt2 = pre_tokenizers.Sequence([_digits, _byte_level])
_no_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

# name: how the models that use this name cut a text
ORIGINAL_RULES = {
    "default": _split(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": _byte_level,
    "phi-2": _byte_level,
    "mpt": _byte_level,
    "olmo": _byte_level,
    "smollm": _digits_gpt2,
    "starcoder": _digits_gpt2,
    "refact": _digits_gpt2,
    "command-r": _digits_gpt2,
    "llama-bpe": _split(LLAMA3),
    "llama3": _split(LLAMA3),
    "llama-v3": _split(LLAMA3),
    "dbrx": _split(LLAMA3),
    "qwen2": _split(QWEN2),
    "deepseek-r1-qwen": _split(QWEN2),
    "qwen35": _split(QWEN35),
    "tekken": _split(TEKKEN),
    "gpt-4o": _split(GPT4O),
    "llama4": _split(GPT4O),
    "deepseek-coder": pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated")
          for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        _digits, _no_bytes,
    ]),
    "deepseek-v3": _split(r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3),
}  # fmt: skip
NFC = {"mpt", "olmo", "command-r", "qwen2", "qwen35"}
IGNORE_MERGES = {"llama-bpe", "llama3", "llama-v3", "tekken", "gpt-4o", "llama4"}


def byte_level(metadata: Mapping[str, Any], parse_special: bool = False) -> Tokenizer:
    """The `tokenizers` twin of a gpt2-kind vocabulary."""
    pre = metadata["tokenizer.ggml.pre"]
    tokens = [token.decode() for token in as_bytes(metadata["tokenizer.ggml.tokens"])]
    merges = [tuple(merge.decode().split(" ")) for merge in as_bytes(metadata["tokenizer.ggml.merges"])]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=pre in IGNORE_MERGES
    )
    twin = Tokenizer(model)
    twin.pre_tokenizer = ORIGINAL_RULES[pre]
    if pre in NFC:
        twin.normalizer = normalizers.NFC()
    types = metadata["tokenizer.ggml.token_type"]
    added = [4, 3] if parse_special else [4]
    twin.add_tokens([AddedToken(tokens[i], normalized=False) for i in np.flatnonzero(np.isin(types, added))])
    return twin


def train_byte_level(pre: str) -> dict[str, Any]:
    """Metadata of a small gpt2-kind vocabulary, trained with the rule `pre`."""
    twin = Tokenizer(models.BPE())
    twin.pre_tokenizer = ORIGINAL_RULES[pre]
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    twin.train_from_iterator(CORPUS, trainer)
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    return byte_level_metadata(twin, pre, special, added=["  ", "<tool>"])


def byte_level_metadata(
    twin: Tokenizer, pre: str, special: list[str], added: list[str] | None = None
) -> dict[str, Any]:
    """What a GGUF file of this `tokenizers` tokenizer would hold."""
    import json

    model = json.loads(twin.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    added = added or []
    tokens = vocab + special + added
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": np.array([1] * len(vocab) + [3] * len(special) + [4] * len(added), dtype=np.int32),
        "tokenizer.ggml.bos_token_id": len(vocab),
        "tokenizer.ggml.eos_token_id": len(vocab),
    }


def _field(number: int, payload: bytes | float | int) -> bytes:
    """One field of a protocol-buffers message."""
    if isinstance(payload, bytes):
        return _varint(number << 3 | 2) + _varint(len(payload)) + payload
    if isinstance(payload, float):
        return _varint(number << 3 | 5) + struct.pack("<f", payload)
    return _varint(number << 3) + _varint(payload)


def _varint(n: int) -> bytes:
    low, rest = n & 0x7F, n >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def sentencepiece_model(metadata: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """The `sentencepiece` twin of a llama-kind vocabulary (a ModelProto written by hand)."""
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    types = np.array(metadata["tokenizer.ggml.token_type"])
    types[unknown] = 2
    parts = []
    tokens, scores = as_bytes(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.scores"].tolist()
    for token, score, token_type in zip(tokens, scores, types.tolist(), strict=True):
        if token_type == 4:
            token = token.replace(b" ", "▁".encode())
        parts.append(_field(1, _field(1, token) + _field(2, float(score)) + _field(3, token_type)))
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    trainer = _field(3, 2) + _field(35, int(6 in types))
    trainer += _field(40, int(unknown)) + _field(41, int(bos)) + _field(42, int(eos))
    prefix = int(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer = _field(1, b"identity") + _field(3, prefix) + _field(4, 0) + _field(5, 1)
    proto = b"".join(parts) + _field(2, trainer) + _field(3, normalizer)
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def train_sentencepiece(
    byte_fallback: bool = True, space_prefix: bool = True
) -> tuple[dict[str, Any], sentencepiece.SentencePieceProcessor]:
    """Metadata of a small llama-kind vocabulary, and the trained original."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=byte_fallback,
        add_dummy_prefix=space_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        split_by_whitespace=True,
        control_symbols=["<turn>", "<pad>"],
        user_defined_symbols=["<tool>", "\n\n", "▁▁▁", "ab▁", "<tool></tool>"],
        minloglevel=4,
        num_threads=1,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return sentencepiece_metadata(original, space_prefix), original


def sentencepiece_metadata(original: sentencepiece.SentencePieceProcessor, space_prefix: bool = True) -> dict[str, Any]:
    """What a GGUF file of this `sentencepiece` model would hold."""
    ids = range(original.get_piece_size())

    def token_type(i: int) -> int:
        if original.is_unknown(i):
            return 2
        if original.is_control(i):
            return 3
        if original.is_byte(i):
            return 6
        return 4 if original.id_to_piece(i) in ("<tool>", "\n\n", "▁▁▁", "ab▁", "<tool></tool>") else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([original.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array([token_type(i) for i in ids], np.int32),
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.eos_token_id": original.eos_id(),
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }


# Characters in which tokenizers and Unicode versions disagree least often would hide mistakes; so all that
# were assigned in the Unicode version of every supported Python, and often those that matter to the rules.
_delicate = st.sampled_from(
    list(" \t\n\r\v\f'sStTdDlLrReEvVmM019.,!?/_-<>|#$%()abzABZ\0\x1c\x1f\x7f\x85\xa0")
    + list("éßſÄñ\u0301\u0308\u200b\u200d\u2003\u2028\u3000漢字かなカ가각१½²Ⅻ🦙🚀Дщ▁\ufffd\ufeff")
    + ["  ", "   ", "\n\n", "\r\n", "'ll", "'RE", " the", "ing", "12345", "<|im_end|>", "<tool>", "ab▁", "aa"]
)
_any = st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x1F9FF)
texts = st.lists(st.one_of(_delicate, _delicate, _any), max_size=40).map("".join)
