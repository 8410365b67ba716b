"""tekken.json, the tokenizer of Mistral's newer models: tokens by rank, special tokens before them."""

from __future__ import annotations

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.ranks import from_base64, put_ranked
from edgellm.convert.vocabulary.rules import named
from edgellm.errors import FormatError, UnsupportedError

# Special tokens of the versions whose files do not list them (up to v7).
_EARLY = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
]  # fmt: skip
_EARLY_VERSIONS = ("v1", "v2", "v3", "v7")


def read_tekken(file: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tekken.json. Raises FormatError, UnsupportedError for a pattern that edgellm lacks."""
    config = file.record("config")
    if config is None:
        raise file.wrong("config", "an object")
    pattern = config.text("pattern")
    pre = named([pattern], nfc=False, ignore_merges=True) if pattern else None
    if pre is None:
        raise UnsupportedError(
            f"{file.file}: config.pattern is {shown(pattern, 400)}, which is none that edgellm knows"
        )
    n_tokens, n_special = config.number("default_vocab_size"), config.number("default_num_special_tokens")
    if n_tokens is None or n_special is None or not n_special < n_tokens <= n_vocab:
        raise FormatError(
            f"{file.file}: config has default_vocab_size {n_tokens} and default_num_special_tokens {n_special}; "
            f"expected at most the {n_vocab} rows of the model's embedding, and fewer special tokens than tokens"
        )
    draft = Draft(file.file, n_vocab, "gpt2", pre)
    for rank, text, is_control in _special(file, config, n_special):
        draft.add(rank, text, is_control, file.file)
    for rank in range(n_special):
        if rank not in draft.tokens:
            draft.add(rank, f"<SPECIAL_{rank}>", True, file.file)
    put_ranked(draft, _ranked(file, n_tokens - n_special), n_special)
    draft.names = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    draft.settings["add_bos_token"] = True
    return draft


def _special(file: Record, config: Record, most: int) -> list[tuple[int, str, bool]]:
    """The special tokens that the file names: (id, text, whether it steers the model)."""
    if "special_tokens" not in file:
        if config.text("version") not in _EARLY_VERSIONS:
            raise file.wrong("special_tokens", "a list, as every version after v7 has")
        return [(rank, text, True) for rank, text in enumerate(_EARLY[:most])]
    found = []
    for token in file.records("special_tokens"):
        rank, text = token.number("rank"), token.text("token_str")
        if rank is None or text is None or rank >= most:
            raise FormatError(
                f"{file.file}: special_tokens holds {shown(token.values)}; expected a token_str and a rank below {most}"
            )
        found.append((rank, text, token.flag("is_control") is not False))
    return found


def _ranked(file: Record, n: int) -> list[bytes]:
    """The first n tokens; the file holds more than the models use."""
    tokens = []
    for i, entry in enumerate(file.records("vocab")):
        if i == n:
            break
        if entry.number("rank") != i:
            raise entry.wrong("rank", f"{i}, its place in the list")
        tokens.append(from_base64(entry.values.get("token_bytes"), f"{file.file}: {entry.trail}token_bytes"))
    if len(tokens) < n:
        raise FormatError(f"{file.file}: vocab has {len(tokens)} tokens; config speaks of {n}")
    return tokens
