"""The original tokenizers, built from the vocabulary of a GGUF file or trained on the spot."""

# Letters of many scripts are what the patterns are about.
# ruff: noqa: RUF001

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
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


REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]+{SUFFIX}?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]*{SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
) + REST
JAIS2 = LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + (
    r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
EXAONE_MOE = SUFFIX + (
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
SEED_CODER = SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + REST
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
SPARK = DEEPSEEK3.replace("[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+", "[\\p{P}\\p{S}]+|[\r\n]")
AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-\u309f\u30a0-\u30ff]+"
HAN = "[一-龥ࠀ-一가-\ud7ff]+"


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_digits = pre_tokenizers.Digits(individual_digits=True)
_digits_gpt2 = pre_tokenizers.Sequence([_digits, _byte_level])
_no_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

_deepseek3 = _split(r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3)
_punctuation = pre_tokenizers.Punctuation("isolated")


def _steps(*steps: pre_tokenizers.PreTokenizer | str) -> pre_tokenizers.PreTokenizer:
    made = [pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in steps]
    return pre_tokenizers.Sequence([*made, _no_bytes])


# How the models cut a text that use one of some names, and whether they compose it (NFC) and take whole words that are
# tokens, whatever the merges make of them.
_RULES: list[tuple[str, pre_tokenizers.PreTokenizer, bool, bool]] = [
    ("default", _split(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), False, False),
    ("gpt-2 phi-2 a.x-4.0 exaone4 gigachat granite-docling jais mellum modern-bert trillion jina-de jina-es jina-v1-en "
     "jina-v2-code jina-v2-de jina-v2-es roberta-bpe", _byte_level, False, False),
    ("mpt olmo", _byte_level, True, False),
    ("smollm starcoder refact codeshell exaone mellum2 minerva-7b", _digits_gpt2, False, False),
    ("command-r", _digits_gpt2, True, False),
    ("llama-bpe llama3 llama-v3 falcon-h1 falcon3 jina-v5-nano lfm2 midm-2.0 pixtral", _split(LLAMA3), False, True),
    ("dbrx smaug-bpe chatglm-bpe glm4", _split(LLAMA3), False, False),
    ("qwen2", _split(QWEN2), True, False),
    ("deepseek-r1-qwen f2llmv2 grok-2 hunyuan kormo megrez solar-open stablelm2", _split(QWEN2), False, False),
    ("qwen35", _split(QWEN35), True, False),
    ("tekken", _split(TEKKEN), False, True),
    ("gpt-4o llama4 granite-embed-multi-97m kanana2 minimax-m2 talkie", _split(GPT4O), False, True),
    ("deepseek-llm", _split(
        r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
        "ὐ-ὗὙὛὝ\u1f5f-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
        "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN, r"\p{N}+"), False, False),
    ("deepseek-coder", _steps(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, _digits), False, False),
    ("deepseek-v3 hunyuan-dense hy_v4 joyai-llm", _deepseek3, False, False),
    ("spark2_5", _split(r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", SPARK, r"\p{N}"), False, False),
    ("youtu", _split(YOUTU_SCRIPTS, GPT4O.replace(r"\p{N}{1,3}", r"\p{N}")), False, True),
    ("afmoe", _split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", AFMOE_SCRIPTS, DEEPSEEK3), False, False),
    ("falcon", _steps(pre_tokenizers.Punctuation("contiguous"), GPT2, pre_tokenizers.Digits(individual_digits=False),
                      "[0-9][0-9][0-9]"), False, False),
    ("bloom gpt3-finnish poro-chat", _split(BLOOM), False, False),
    ("viking", _steps(BLOOM, _digits), False, False),
    ("jais-2", _split(JAIS2), False, False),
    ("chameleon", _steps("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", _digits,
                         _punctuation, GPT2), False, False),
    ("superbpe", _split(r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False, False),
    ("tiny_aya cohere2moe", _split(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), False, False),
    ("kimi-k2", _split(KIMI), False, True),
    ("bailingmoe bailingmoe2 llada-moe", _split(BAILING), False, False),
    ("seed-coder", _split(SEED_CODER), False, False),
    ("ufakzeka", _split(QWEN2.removeprefix(f"{SUFFIX}|")), False, False),
    ("laguna", _split(r"[^\n]+|[\n]+", QWEN2), False, False),
    ("exaone-moe", _split(EXAONE_MOE), False, False),
    ("minicpm5", _split(r"\p{N}{1,3}", QWEN2.replace(r"|\p{N}|", r"|\p{N}+|")), False, True),
]  # fmt: skip
ALIKE = [names.split() for names, *_ in _RULES]  # names with one meaning
ORIGINAL_RULES = {name: rule for names, rule, *_ in _RULES for name in names.split()}
NFC = {name for names, _, composes, _ in _RULES for name in names.split() if composes}
IGNORE_MERGES = {name for names, *_, whole in _RULES for name in names.split() if whole}


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


def train_plain(marks_spaces: bool, pattern: str) -> Tokenizer:
    """A tokenizer with merges of characters, and tokens for bytes of which the others are made."""
    original = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if marks_spaces:
        original.normalizer = normalizers.Replace(" ", "▁")
    original.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, show_progress=False, special_tokens=names)
    texts = [text.replace("\n", "") for text in CORPUS]  # no merge makes line breaks, nor spaces that are not marked
    original.train_from_iterator(texts if marks_spaces else " ".join(texts).split(), trainer)
    values = json.loads(original.to_str())
    return Tokenizer.from_str(json.dumps(values | {"added_tokens": []}))


def byte_level_metadata(
    twin: Tokenizer, pre: str, special: list[str], added: list[str] | None = None
) -> dict[str, Any]:
    """What a GGUF file of this `tokenizers` tokenizer would hold."""
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


# "ab" and "bc" are marked unused: they may stand between two merges, and not in the result.
UNUSED_BETWEEN_MERGES: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc", "bc"],
    "tokenizer.ggml.scores": np.array([0, 0, 0, -9, -9, -9, -1, -3, -2], np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1, 1, 5, 1, 5], np.int32),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}


def train_sentencepiece(
    byte_fallback: bool = True,
    space_prefix: bool = True,
    user_defined: Sequence[str] = ("<tool>", "\n\n", "▁▁▁", "ab▁", "<tool></tool>"),
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
        user_defined_symbols=list(user_defined),
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
