"""Files of tiktoken: a line for each token, in base64, with its rank.

They hold neither the pattern that cuts text nor the special tokens: both belong to the program of each model
family. The families are told apart by their number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.ranks import from_base64, put_ranked
from edgellm.errors import FormatError, UnsupportedError


@dataclass(frozen=True)
class Family:
    """What the program of a model family adds to its file.

    special:  its special tokens, whose ids follow those of the file.
    roles:    which of them begins and ends a text, and so on.
    """

    title: str
    pre: str
    special: Callable[[], list[str]]
    roles: dict[str, str]
    add_bos: bool


def read_tiktoken(raw: bytes, file: str, config: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tiktoken file of Llama 3, Llama 4, Qwen or Kimi.

    config:  tokenizer_config.json; the special tokens that it lists stand in for the family's own.
    """
    tokens = _tokens(raw, file, n_vocab)
    family = FAMILIES.get(len(tokens))
    if family is None:
        known = ", ".join(f"{family.title} ({n:,})" for n, family in FAMILIES.items())
        raise UnsupportedError(
            f"{file}: a tiktoken file of {len(tokens):,} tokens does not say how text is cut; edgellm knows {known}; "
            "have transformers save the tokenizer, which writes a tokenizer.json that does"
        )
    draft = Draft(file, n_vocab, "gpt2", family.pre)
    put_ranked(draft, tokens)
    if "added_tokens_decoder" not in config:
        for token_id, text in enumerate(family.special(), len(tokens)):
            draft.add(token_id, text, True, file)
    draft.names = family.roles
    draft.settings["add_bos_token"] = family.add_bos
    return draft


def _tokens(raw: bytes, file: str, n_vocab: int) -> list[bytes]:
    """The tokens in the order of their ranks."""
    n_lines = raw.count(b"\n") + (not raw.endswith(b"\n"))
    if n_lines > n_vocab:
        raise FormatError(
            f"{file} has {n_lines} tokens, but the model's embedding has {n_vocab} rows; the tokenizer is another's"
        )
    lines = raw.split(b"\n")[:n_lines]
    for rank, line in enumerate(lines):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9 or int(fields[1]) != rank:
            found = shown(line[:80].decode(errors="replace"))
            raise FormatError(f"{file}: line {rank + 1} is {found}; expected a token in base64 and the rank {rank}")
    return [from_base64(line.split()[0], f"{file}: the token of line {i}") for i, line in enumerate(lines, 1)]


def _llama3() -> list[str]:
    named = """begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id
        start_header_id end_header_id eom_id eot_id python_tag image"""
    found = [f"<|{name}|>" for name in named.split()]
    return found + [f"<|reserved_special_token_{i}|>" for i in range(2, 2 + 256 - len(found))]


def _llama4() -> list[str]:
    def reserved(kind: str, *numbers: int) -> list[str]:
        return [f"{kind}_reserved_special_token_{i}" for i in numbers]

    names = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"]
    names += ["header_start", "header_end", "eom", "eot", "step", *reserved("text_post_train", *range(6))]
    names += ["python_start", "python_end", "finetune_right_pad", *reserved("text_post_train", *range(8, 69))]
    names += ["image_start", "image_end", *reserved("vision", 0, 1), "tile_x_separator", "tile_y_separator"]
    names += [*reserved("vision", 2, 3, 4, 5), "image", *reserved("vision", 6), "patch"]
    names += [*reserved("vision", *range(7, 1048)), *reserved("reasoning", *range(8))]
    names += ["reasoning_thinking_start", "reasoning_thinking_end"]
    names += [f"reserved_special_token_{i}" for i in range(2048 - len(names))]
    return [f"<|{name}|>" for name in names]


def _qwen() -> list[str]:
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]


def _kimi() -> list[str]:
    reserved = [f"<|reserved_token_{163_584 + i}|>" for i in range(2, 254)]
    return ["[BOS]", "[EOS]", *reserved, "[UNK]", "[PAD]"]


_llama_roles = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
_qwen_roles = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
_kimi_roles = {"bos": "[BOS]", "eos": "[EOS]", "unk": "[UNK]", "pad": "[PAD]"}

FAMILIES = {
    128_000: Family("Llama 3", "llama-bpe", _llama3, _llama_roles, add_bos=True),
    200_000: Family("Llama 4", "llama4", _llama4, _llama_roles, add_bos=True),
    151_643: Family("Qwen", "qwen2", _qwen, _qwen_roles, add_bos=False),
    163_584: Family("Kimi", "kimi-k2", _kimi, _kimi_roles, add_bos=False),
}
