"""Special tokens: those added beside a vocabulary, those with a role, and those put around every text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Files, Record
from edgellm.errors import FormatError
from edgellm.text.tokenizer import END_OF_TURN
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
    listed = files.json("added_tokens.json")
    for text, token_id in listed.values.items():
        if draft.ids.get(text) != token_id:
            draft.add(token_id, text, False, listed.file, may_rename)
    for token in files.json("tokenizer.json").records("added_tokens"):
        special = bool(token.flag("special"))
        draft.add(token.values.get("id"), token.values.get("content"), special, token.file, may_rename)


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
    defaults = {"bos": draft.model == "llama", "eos": False}
    for role, side in (("bos", draft.begin), ("eos", draft.end)):
        key = f"add_{role}_token"
        told = config.flag(key)
        if side and told is not False:
            _take_role(draft, role, side[0])
        if told is None:
            told = draft.settings.get(key, defaults[role]) if side is None else bool(side)
        draft.settings[key] = told and role in draft.roles


def set_space_prefix(draft: Draft, files: Files) -> None:
    """Let the settings decide whether texts get a space in front, where SentencePiece's own model says one thing."""
    told = files.json(_CONFIG).flag("add_prefix_space")
    if told is not None and not draft.file.endswith(".json"):
        draft.settings["add_space_prefix"] = told


def set_turn_ends(draft: Draft, files: Files) -> None:
    """Give the other tokens that end an answer the roles "eot" and "eom"."""
    ends = {token_id: None for record in _model_configs(files) for token_id in _ids(record, "eos_token_id")}
    others = [token_id for token_id in ends if token_id in draft.tokens and token_id != draft.roles.get("eos")]
    texts = {draft.tokens[token_id].text: token_id for token_id in others}
    for role, names in (("eot", _TURN_ENDS), ("eom", _MESSAGE_ENDS)):
        for name in names:
            if name in texts:
                draft.roles.setdefault(role, texts[name])
    known_by_name = {token.decode() for token in END_OF_TURN}
    for text, token_id in texts.items():
        if text not in known_by_name:
            free = next((role for role in ("eot", "eom") if role not in draft.roles), None)
            if free:
                draft.roles[free] = token_id


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
