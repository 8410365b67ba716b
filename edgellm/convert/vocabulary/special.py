"""Special tokens: those added beside a vocabulary, those with a role, and those put around every text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edgellm.convert.vocabulary.draft import FLAGS, Draft
from edgellm.convert.vocabulary.files import Files, Record, shown
from edgellm.convert.vocabulary.metaspace import read_spaces
from edgellm.errors import FormatError
from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import TokenType

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eot|>", "<EOT>", "[EOT]")
_MESSAGE_ENDS = ("<|eom_id|>", "<|eom|>")
_CONFIG = "tokenizer_config.json"


def add_tokens(draft: Draft, files: Files) -> None:
    """Take the added tokens of tokenizer_config.json, added_tokens.json and tokenizer.json.

    Beside a SentencePiece model they may rename its pieces; elsewhere every id has one name.
    """
    may_rename = draft.model == "llama" and not draft.file.endswith(".json")
    decoder = files.json(_CONFIG).record("added_tokens_decoder")
    for key in decoder.values if decoder else ():
        token = decoder.record(key) if decoder else None
        if token is None or not re.fullmatch(r"\d{1,9}", key):
            raise FormatError(f"{_CONFIG}: added_tokens_decoder has the key {key!r:.40}; expected ids with tokens")
        draft.add(int(key), token.values.get("content"), bool(token.flag("special")), _CONFIG, may_rename)
        _take_flags(draft, int(key), token)
    listed = files.json("added_tokens.json")
    for text, token_id in listed.values.items():
        if draft.ids.get(text) != token_id:
            draft.add(token_id, text, False, listed.file, may_rename)
    for token in files.json("tokenizer.json").records("added_tokens"):
        special = bool(token.flag("special"))
        draft.add(token.values.get("id"), token.values.get("content"), special, token.file, may_rename)
        _take_flags(draft, token.values["id"], token)


def _take_flags(draft: Draft, token_id: int, token: Record) -> None:
    """Where an added token is found, and what it swallows; the file that is read last counts."""
    for flag in FLAGS:
        if token.flag(flag):
            draft.flags[flag].add(token_id)
        else:
            draft.flags[flag].discard(token_id)


def normalize_flags(draft: Draft) -> None:
    """Keep those flags alone that make a difference.

    Which tokens are found in normalized text makes none where nothing is normalized and all are found alike. Without
    a word on it, a tokenizer of the llama kind looks for user-defined tokens as SentencePiece does: where spaces have
    become U+2581, which no token swallows, and a text gets a space in front once. For `tokenizers` a text begins anew
    behind each of them.
    """
    added = {i for i, t in draft.tokens.items() if t.type in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    added |= draft.merged
    unknown = {i for i, t in draft.tokens.items() if t.type == TokenType.UNKNOWN}  # which is found in a text as well
    for flag, ids in draft.flags.items():
        ids &= added if flag == "normalized" and draft.model != "t5" else added | unknown
    normalized = draft.flags["normalized"]
    if draft.model == "llama" and not draft.replaces_spaces:
        normalized -= draft.merged  # nothing is normalized before it is looked for
    if draft.model in ("llama", "t5") and (made := sorted(i for i in added - draft.merged if _is_made(draft, i))):
        draft.ours["made"] = np.array(made, np.int32)
    if draft.model == "gpt2" and normalized == added and not PRETOKENIZERS[draft.pre].nfc:
        normalized.clear()
    user_defined = {i for i, token in draft.tokens.items() if token.type == TokenType.USER_DEFINED}
    swallowing = user_defined & (draft.flags["lstrip"] | draft.flags["rstrip"])
    told = draft.file.endswith(".json") and any(set(draft.tokens[i].text) & {" ", SPACE} for i in user_defined)
    exact = swallowing or told or (user_defined and draft.prefixed)
    if draft.model == "llama" and exact and not normalized:
        draft.ours["normalized"] = np.zeros(0, np.int32)
    if draft.merged:
        draft.ours["also_added"] = np.array(sorted(draft.merged), np.int32)


def _is_made(draft: Draft, token_id: int) -> bool:
    """Whether merging can make an added token: where it is not found, or where no text may name what steers."""
    token = draft.tokens[token_id]
    found_everywhere = (
        token_id not in draft.flags["normalized"] | draft.flags["single_word"] and SPACE not in token.text
    )
    return token.text in draft.made and (token.type == TokenType.CONTROL or not found_everywhere)


def set_roles(draft: Draft, files: Files) -> None:
    """Find the tokens with a role: by the names in the tokenizer's settings, then its own, then by the model's ids."""
    named = [draft.names, *map(_names, (files.json("special_tokens_map.json"), files.json(_CONFIG)))]
    for names in named:
        for role, text in names.items():
            if text in draft.ids:  # a name without a token is a leftover: no row of the embedding is meant
                draft.roles[role] = draft.ids[text]
    for record in _model_configs(files):
        for role in ROLES:
            for token_id in _ids(record, f"{role}_token_id")[:1]:
                if token_id in draft.tokens:
                    draft.roles.setdefault(role, token_id)
    for token_id in draft.roles.values():
        token = draft.tokens[token_id]
        if token.type == TokenType.NORMAL and re.fullmatch(r"<.+>|\[.+\]", token.text):
            draft.tokens[token_id] = token._replace(type=TokenType.CONTROL)


def set_frame_flags(draft: Draft, files: Files) -> None:
    """Say whether the tokens that begin and end a text are put around it."""
    config = files.json(_CONFIG)
    defaults = {"bos": draft.model == "llama", "eos": draft.model == "t5"}
    for role, side in (("bos", draft.begin), ("eos", draft.end)):
        key = f"add_{role}_token"
        told = config.flag(key)
        if side and told is not False:
            _take_role(draft, role, side[0])
        is_contradicted = side is not None and told is not None and told != bool(side)
        if is_contradicted and files.has("tokenizer.json") and (side or role in draft.roles):
            draft.notes.append(
                f"{_CONFIG} says {key} {str(told).lower()}, and the post-processor of tokenizer.json "
                f"{'puts a token there' if side else 'puts none'}: the first counts, as in llama.cpp; version 5 of "
                f"transformers goes by tokenizer.json: take {key} out if the model was trained so"
            )
        if told is None:
            told = draft.settings.get(key, defaults[role]) if side is None else bool(side)
        draft.settings[key] = told and role in draft.roles


def set_space_prefix(draft: Draft, files: Files) -> None:
    """Say which texts get a space in front, where SentencePiece's own model leaves that to its program.

    tokenizer.json tells it exactly. Without one, `legacy` in the settings does: when it is false, only what begins a
    text gets a space, not what follows a special token.
    """
    if draft.file.endswith(".json"):
        return
    if files.has("tokenizer.json"):
        read_spaces(draft, files.json("tokenizer.json"))
        return
    config = files.json(_CONFIG)
    told = config.flag("add_prefix_space")
    if told is not None:
        draft.settings["add_space_prefix"] = told
    if config.flag("legacy") is False and draft.settings["add_space_prefix"]:
        draft.ours["prepend_scheme"] = "first"


def set_turn_ends(draft: Draft, files: Files) -> None:
    """Give the other tokens that end an answer the roles "eot" and "eom", and list all where they are more."""
    ends = {token_id: None for record in _model_configs(files) for token_id in _ids(record, "eos_token_id")}
    _note_ends(draft, files, ends)
    others = [token_id for token_id in ends if token_id in draft.tokens and token_id != draft.roles.get("eos")]
    texts = {draft.tokens[token_id].text: token_id for token_id in others}
    for role, names in (("eot", _TURN_ENDS), ("eom", _MESSAGE_ENDS)):
        for name in names:
            if name in texts:
                draft.roles.setdefault(role, texts[name])
    for token_id in others:
        free = next((role for role in ("eot", "eom") if role not in draft.roles), None)
        if free and token_id not in draft.roles.values():
            draft.roles[free] = token_id
    listed = {token_id for token_id in ends if 0 <= token_id < draft.n_vocab}
    if not listed <= {draft.roles.get(role) for role in ("eos", "eot", "eom")}:
        draft.ours["stop_ids"] = np.array(sorted(listed), np.int32)


def _note_ends(draft: Draft, files: Files, ends: Iterable[int]) -> None:
    """What ends an answer for `transformers` and cannot here."""
    for token_id in ends:
        if not 0 <= token_id < draft.n_vocab:
            draft.notes.append(f"eos_token_id {token_id} is left out: the model has {draft.n_vocab} tokens")
    strings = files.json("generation_config.json").values.get("stop_strings")
    if strings:
        draft.notes.append(f"generation_config.json: stop_strings {shown(strings)} are left out: tokens end an answer")


def _take_role(draft: Draft, role: str, token_id: int) -> None:
    """The token that is put there has the role; another that had it by name still ends an answer."""
    before = draft.roles.get(role)
    draft.roles[role] = token_id
    if role == "eos" and before is not None and before != token_id:
        draft.roles.setdefault("eot", before)


def _names(record: Record) -> dict[str, str]:
    """The text of each role's token; files give it alone, or with the token's properties."""
    found = {}
    for role in ROLES:
        key = f"{role}_token"
        spelled = record.record(key) if isinstance(record.values.get(key), dict) else None
        name = record.text(key) if spelled is None else spelled.text("content")
        if name is not None:
            found[role] = name
    return found


def _model_configs(files: Files) -> Iterator[Record]:
    for record in (files.json("generation_config.json"), files.json("config.json")):
        yield record
        if (text := record.record("text_config")) is not None:
            yield text


def _ids(record: Record, key: str) -> list[int]:
    """The id or ids under a key."""
    value: Any = record.values.get(key)
    ids = value if type(value) is list else [] if value is None else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise record.wrong(key, "a token id or a list of them")
    return ids
