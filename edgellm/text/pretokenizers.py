r"""Pre-tokenizers: how a text is cut into words before the byte-pair merges of a GPT-2 style tokenizer.

`tokenizer.ggml.pre` names the rule. A rule is a row of patterns: each cuts what the one before left, into its
matches and the stretches between them. A word never merges with its neighbour, so a wrong rule gives wrong
ids without any other sign; a name that is not in the table is therefore refused, never guessed. The names are all
that llama.cpp writes and reads, and many mean the same.

The patterns are those of the models' own tokenizer files. They speak of Unicode classes (`\p{L}`), which need
the `regex` package, and importing it takes as long as reading a vocabulary. Most prompts are plain ASCII,
where the same classes are a handful of ranges that the standard library can match; so only a text beyond
ASCII pays for `regex`. Classes stand in brackets everywhere, which keeps that exchange a plain substitution.
"""

# Letters of many scripts are what the patterns are about.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from edgellm.dataclass import dataclass
from edgellm.errors import UnsupportedError

if TYPE_CHECKING:
    from edgellm.text.compiled.automaton import Automaton

_DIGIT = r"[\p{N}]"
PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]"  # as `tokenizers` has it: Unicode's, and what ASCII has of signs

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Patterns that one does the work of: here, a digit ends what is before it.
_AS_ONE: dict[tuple[str, ...], str] = {
    (_DIGIT, _GPT2): f"{_DIGIT}|" + _GPT2.replace(r"| ?[\p{N}]+", "").replace(r"(?!\S)", r"(?![^\s\p{N}])")
}

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|[\p{N}]"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|[\p{N}]|", r"|[\p{N}]{1,3}|")

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|[\p{N}]| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_KIMI_UPPER, _KIMI_LOWER = rf"(?:(?![\p{{Han}}]){_UPPER})", rf"(?:(?![\p{{Han}}]){_LOWER})"
_KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_SUFFIX}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_SUFFIX}|[\p{{N}}]{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
) + _REST
_JAIS2 = _LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + "|".join(
    [*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s{1}"]
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+[\p{L}]+|[\p{N}]| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:[\p{L}][\p{M}]*(?: [\p{L}][\p{M}]*)*)+|[\p{N}]"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]{1}| ?[^\s\p{L}\p{N}\r\n]+" + _REST
_LINES = r"[^\n]+|[\n]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_KANA_AND_HAN = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL = "[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK3 = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _REST
_SPARK = _DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|")
_DEEPSEEK_LLM_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "\u1f5f-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_AFMOE_SCRIPTS = (
    "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)

_BETWEEN_WORDS = re.compile(r" (?<=\S )(?=\S)")  # found sooner by what it begins with
_TO_LAST_BETWEEN = re.compile(r".*\S (?=\S)", re.DOTALL)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+(?:[\x00-\x7f]{1,60}[^\x00-\x7f]+)*")  # and the little that lies between
_SPARSE = 16  # characters for each byte that is beyond ASCII, from which what is ASCII alone is cut apart

# Digits in threes, counted from the right. The patterns, as the files have them, look at all that is left of a number
# for each three of its digits; `_in_threes` does what they mean.
_THREES = r"(?=(?:\d{3})+(?!\d))"
_THREES_TO_BOUNDARY = r"\d{1,3}(?=(?:\d{3})*\b)"
_THREES_OF_ANY = r"[\p{N}]{1,3}(?=(?:[\p{N}]{3})*(?![\p{N}]))"


@dataclass(frozen=True)
class PreTokenizer:
    """One rule of the table.

    patterns:       each cuts the words that the one before left.
    nfc:            the text is first brought into Unicode's composed form.
    ignore_merges:  a word that is a token is taken whole, whatever the merges would make of it.
    add_bos:        `add_special` puts the bos token first, unless the file says otherwise.
    spells_bytes:   tokens and merges are in GPT-2's spelling of bytes; else they are plain text.
    marks_spaces:   of plain text: with "▁" for spaces.
    spans_spaces:   a word may have a space between two characters that are none; else words begin at such a space.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    spells_bytes: bool = True
    marks_spaces: bool = False
    spans_spaces: bool = False

    def normalize(self, text: str) -> str:
        """The text in composed form if `nfc`."""
        if not self.nfc or text.isascii():
            return text
        from unicodedata import normalize

        return normalize("NFC", text)

    def split(self, text: str) -> list[str]:
        """The words of a text, in order; joined, they are the text."""
        if text.isascii():
            return _cut_by(self._ascii_cuts, text)
        n_beyond = len(text.encode()) - len(text)
        if self.spans_spaces or n_beyond * _SPARSE >= len(text):
            return _cut_by(self._unicode_cuts, text)
        words: list[str] = []
        for part in _alike(text):
            words += _cut_by(self._ascii_cuts if part.isascii() else self._unicode_cuts, part)
        return words

    @property
    def automata(self) -> tuple[Automaton, ...] | None:
        """What cuts texts as `split` does, one for each pattern, for kernels; None: there are none for this rule."""
        from edgellm.text.compiled.automaton import automata_of  # for long texts only

        return automata_of(tuple(map(_greedy, self._least_patterns)), _in_ascii, _in_unicode)

    @cached_property
    def _ascii_cuts(self) -> list[Callable[[str], list[str]]]:
        return [_cut(pattern, _in_ascii) for pattern in self._least_patterns]

    @cached_property
    def _unicode_cuts(self) -> list[Callable[[str], list[str]]]:
        return [_cut(pattern, _in_unicode) for pattern in self._least_patterns]

    @property
    def _least_patterns(self) -> tuple[str, ...]:
        as_one = _AS_ONE.get(self.patterns)
        return self.patterns if as_one is None else (as_one,)


def _in_ascii(pattern: str) -> re.Pattern[str]:
    """A pattern for texts of ASCII characters alone."""
    return re.compile(re.sub(r"\\p\{(\w+)\}", lambda match: _ASCII[match[1]], pattern), re.ASCII)


def _in_unicode(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)


def _greedy(pattern: str) -> str:
    """Python 3.10 has no possessive repeats; in the one rule that has them, greedy ones match the same."""
    return pattern.replace("?+", "?").replace("++", "+")


def _alike(text: str) -> Iterator[str]:
    """A text in parts that are ASCII alone and parts that are not, cut between words."""
    done = 0
    for beyond in _BEYOND_ASCII.finditer(text):
        if beyond.end() <= done:
            continue
        before = _TO_LAST_BETWEEN.match(text, done, beyond.start())
        after = _BETWEEN_WORDS.search(text, beyond.end())
        start, end = before.end() - 1 if before else done, after.start() if after else len(text)
        yield from (text[done:start], text[start:end])
        done = end
    yield text[done:]


def _cut_by(cuts: list[Callable[[str], list[str]]], text: str) -> list[str]:
    words = [text]
    for cut in cuts:
        words = list(chain.from_iterable(map(cut, words)))
    return words


def _cut(pattern: str, compiled: Callable[[str], Any]) -> Callable[[str], list[str]]:
    """What cuts a text into the matches of a pattern and what lies between, none of them empty."""
    if pattern in (_THREES, _THREES_TO_BOUNDARY, _THREES_OF_ANY):
        number = compiled(r"[\p{N}]+" if pattern == _THREES_OF_ANY else r"\d+")
        # For the engine behind `tokenizers`, ²³¹¼½¾ belong to words.
        return partial(_in_threes, number=number, letter=compiled(r"[\w\xb2\xb3\xb9\xbc-\xbe]"), pattern=pattern)
    greedy = _greedy(pattern)
    split, matches = compiled(f"({greedy})").split, compiled(greedy).findall
    covers = pattern.endswith(r"|\s+")  # most texts whole

    def cut(text: str) -> list[str]:
        if covers and len("".join(found := matches(text))) == len(text):  # nothing lies between
            return found
        return [piece for piece in split(text) if piece]

    return cut


def _in_threes(text: str, number: re.Pattern[str], letter: re.Pattern[str], pattern: str) -> list[str]:
    """Cuts numbers in threes from the right, in time that grows with the text alone."""
    cuts = [0]
    for match in number.finditer(text):
        start, end = match.span()
        if pattern == _THREES_TO_BOUNDARY and letter.match(text, end):
            continue
        if pattern != _THREES:
            cuts.append(start)
        cuts += range(start + (end - start) % 3, end, 3)
        if pattern != _THREES:
            cuts.append(end)
    return [text[start:end] for start, end in pairwise([*cuts, len(text)]) if start < end]


# The members of each Unicode class among the ASCII characters, as they are written between brackets. A class that can
# stand alone and has none is given another character, for brackets must not be empty.
_ASCII = {
    "Han": r"\x80", "L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": r"\x80", "N": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<->\^`|~",
}  # fmt: skip

_gpt2 = PreTokenizer((_GPT2,))
_gpt2_nfc = PreTokenizer((_GPT2,), nfc=True)
_digits_gpt2 = PreTokenizer((_DIGIT, _GPT2))
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_llama3_merged = PreTokenizer((_LLAMA3,))
_qwen2 = PreTokenizer((_QWEN2,))
_gpt4o = PreTokenizer((_GPT4O,), ignore_merges=True)
_deepseek3 = PreTokenizer((r"[\p{N}]{1,3}", _KANA_AND_HAN, _DEEPSEEK3))
_bailing = PreTokenizer((_BAILING,))
_marked_lines = PreTokenizer((_LINES,), spells_bytes=False, marks_spaces=True, spans_spaces=True)
_bloom = PreTokenizer((_BLOOM,), spans_spaces=True)
_aya = PreTokenizer((_THREES_TO_BOUNDARY, _GPT4O))


def _named(rule: PreTokenizer, *names: str) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names, rule)


PRETOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"[\p{N}]+", r"[0-9][0-9][0-9]")),
    **_named(_gpt2, "gpt-2", "phi-2", "a.x-4.0", "exaone4", "gigachat", "granite-docling", "jais", "mellum",
             "modern-bert", "trillion"),
    **_named(_gpt2, "jina-de", "jina-es", "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "roberta-bpe"),
    **_named(_gpt2_nfc, "mpt", "olmo"),
    **_named(_digits_gpt2, "smollm", "starcoder", "refact", "codeshell", "exaone", "mellum2", "minerva-7b"),
    "command-r": PreTokenizer((_DIGIT, _GPT2), nfc=True),
    **_named(_llama3, "llama-bpe", "llama3", "llama-v3", "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "midm-2.0",
             "pixtral"),
    **_named(_llama3_merged, "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    **_named(_qwen2, "deepseek-r1-qwen", "f2llmv2", "grok-2", "hunyuan", "kormo", "megrez", "solar-open", "stablelm2"),
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **_named(_gpt4o, "gpt-4o", "llama4", "granite-embed-multi-97m", "kanana2", "minimax-m2", "talkie"),
    "deepseek-llm": PreTokenizer((r"[\r\n]", rf"\s?[{_DEEPSEEK_LLM_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
                                  r"\s+$", _HAN_AND_HANGUL, r"[\p{N}]+"), spans_spaces=True),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", _HAN_AND_HANGUL, _DIGIT),
                                   spans_spaces=True),
    **_named(_deepseek3, "deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"),
    "spark2_5": PreTokenizer((r"[\p{N}]{1,3}", _KANA_AND_HAN, _SPARK, _DIGIT)),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _GPT4O.replace(r"[\p{N}]{1,3}", _DIGIT)), ignore_merges=True),
    "afmoe": PreTokenizer((_THREES_OF_ANY, _AFMOE_SCRIPTS, _DEEPSEEK3)),
    "falcon": PreTokenizer((f"{PUNCTUATION}+", _GPT2, r"[\p{N}]+", r"[0-9][0-9][0-9]")),
    **_named(_bloom, "bloom", "gpt3-finnish", "poro-chat"),
    "viking": PreTokenizer((_BLOOM, _DIGIT), spans_spaces=True),
    "jais-2": PreTokenizer((_JAIS2,)),
    "chameleon": PreTokenizer(("<sentinel:[0-9]+>", "(?:IMGIMG)(?:(?:A|B|C|D|E|F|G|H|I){1,4})Z", r"(?:[\t\n]|    |  )",
                               _DIGIT, PUNCTUATION, _GPT2), add_bos=True),
    "superbpe": PreTokenizer((r"[\p{N}]+", _THREES), spans_spaces=True),
    **_named(_aya, "tiny_aya", "cohere2moe"),
    "kimi-k2": PreTokenizer((_KIMI,), ignore_merges=True),  # as tiktoken, which its models have
    **_named(_bailing, "bailingmoe", "bailingmoe2", "llada-moe"),
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "ufakzeka": PreTokenizer((_QWEN2.removeprefix("(?i:'s|'t|'re|'ve|'m|'ll|'d)|"),)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,), spans_spaces=True),
    "gemma4": replace(_marked_lines, add_bos=True),
    **_named(_marked_lines, "granite-embed-multi-311m", "sarvam-moe"),
    "whitespace": PreTokenizer((r"\S+",), spells_bytes=False),
    "minicpm5": PreTokenizer((r"[\p{N}]{1,3}", _QWEN2.replace("|[\\p{N}]|", "|[\\p{N}]+|")), ignore_merges=True),
}  # fmt: skip


def pretokenizer(name: str) -> PreTokenizer:
    """The rule that `tokenizer.ggml.pre` names. Raises UnsupportedError when it is not in the table."""
    if name not in PRETOKENIZERS:
        known = ", ".join(PRETOKENIZERS)
        raise UnsupportedError(f"the pre-tokenizer {name!r:.60} is not supported; edgellm knows {known}")
    return PRETOKENIZERS[name]
