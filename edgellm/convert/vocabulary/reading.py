"""From the tokenizer's files in a folder to the metadata of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.convert.vocabulary.beside import differences
from edgellm.convert.vocabulary.byte_level import check_whole_words, read_vocab_and_merges
from edgellm.convert.vocabulary.chat_templates import chat_templates
from edgellm.convert.vocabulary.decoders import left_out_decoders
from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Files, Record, shown
from edgellm.convert.vocabulary.framing import set_frame
from edgellm.convert.vocabulary.sentencepiece_model import is_sentencepiece, read_sentencepiece
from edgellm.convert.vocabulary.special import (
    add_tokens,
    normalize_flags,
    set_frame_flags,
    set_roles,
    set_space_prefix,
    set_turn_ends,
)
from edgellm.convert.vocabulary.tekken import read_tekken
from edgellm.convert.vocabulary.tiktoken_file import read_tiktoken
from edgellm.convert.vocabulary.tokenizer_json import read_tokenizer_json
from edgellm.convert.vocabulary.wordpiece import read_vocab_txt, respell
from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.text import load_tokenizer


def tokenizer_metadata(folder: Path, n_vocab: int, notes: list[str] | None = None) -> dict[str, Any]:
    """The keys `tokenizer.*` of a GGUF file for the tokenizer in a checkpoint's folder.

    n_vocab:  rows of the model's embedding; ids without a token become unused tokens, and added tokens may come after.
    notes:    what a person should know is added here: settings of the files that are left out.

    What GGUF has no key for stands under `edgellm.tokenizer.*`: `prepend_scheme` and `split_at_spaces` of a Metaspace,
    `steps` by which a Unigram model's texts are prepared, the ids of added tokens with a flag (`lstrip`, `rstrip`,
    `single_word`, `normalized`: int32), those that merging makes of spaces as well (`also_added`) or of letters
    (`made`), and `stop_ids`, all tokens that end an answer, where they are more than the roles eos, eot and eom hold.

    Tokens are str, types an int32 and scores a float32 array as long as they, merges str with a space between
    the halves. Raises FileProblem when there is no tokenizer, FormatError for a file that breaks its rules,
    UnsupportedError for a tokenizer whose ids a GGUF file or edgellm cannot give.
    """
    files = Files(folder)
    draft = _read(files, n_vocab)
    if draft.model == "llama" and not draft.file.endswith(".json") and files.has("tokenizer.json"):
        draft, metadata = _of_two(draft, files)
    else:
        metadata = _metadata_of(draft, files)
    tokenizer = load_tokenizer(metadata)
    tokenizer.encode("a", add_special=True)  # what is wrong shows now, and not when the file is run
    if gone := tokenizer.vanishing:
        raise UnsupportedError(
            f"{draft.file}: the added token {quoted(gone[0])} is to be found in normalized text, and normalizing "
            "leaves nothing of it, so that `tokenizers` cuts texts at every place; make it not normalized, or take it "
            "out"
        )
    if notes is not None:
        json = files.json("tokenizer.json")
        notes += [*draft.notes, *_left_out(json), *(left_out_decoders(json, draft) if json.file == draft.file else [])]
    return metadata | chat_templates(files)


def _of_two(draft: Draft, files: Files) -> tuple[Draft, dict[str, Any]]:
    """The vocabulary that counts of a tokenizer.model and the tokenizer.json beside it, and its metadata.

    They are compared, so both must be readable: what a model was trained with is not guessed.
    """
    try:
        beside = read_tokenizer_json(files.json("tokenizer.json"), draft.n_vocab)
        of_json = _metadata_of(beside, files)
    except (FormatError, UnsupportedError) as problem:
        if not str(problem).startswith("tokenizer.json"):
            raise
        raise type(problem)(
            f"{problem}; transformers goes by tokenizer.json, not by {draft.file} beside it: take tokenizer.json away "
            "if the model was trained with the other"
        ) from None
    if beside.model != draft.model:
        beside.notes.append(
            f"{draft.file} and tokenizer.json are of different kinds; tokenizer.json counts, as in transformers: take "
            "it away if the model was trained with the other"
        )
        return beside, of_json
    metadata = _metadata_of(draft, files)
    if told := differences(metadata, of_json):
        beside.notes += told
        return beside, of_json
    return draft, metadata


def _metadata_of(draft: Draft, files: Files) -> dict[str, Any]:
    """The vocabulary of one file, with what the others say of it."""
    if draft.model == "llama":
        set_space_prefix(draft, files)
    add_tokens(draft, files)
    set_frame(draft, files.json("tokenizer.json"))
    set_roles(draft, files)
    if draft.model == "bert":
        respell(draft)
        n_types = files.json("config.json").number("type_vocab_size")
        draft.settings |= {} if n_types is None else {"token_type_count": n_types}
    else:
        set_frame_flags(draft, files)
        set_turn_ends(draft, files)
        check_whole_words(draft)
    normalize_flags(draft)
    return draft.metadata()


def _left_out(file: Record) -> list[str]:
    """Settings of batches, which belong to a program that makes batches, and not to a tokenizer."""
    keys = (key for key in ("truncation", "padding") if key in file)
    return [f"{file.file}: {key} {shown(file.values[key])} is left out" for key in keys]


def _read(files: Files, n_vocab: int) -> Draft:
    """The vocabulary of the file that tells most: the original model, then tokenizer.json, then older layouts.

    An original model that edgellm cannot read, or that a tokenizer.json spells otherwise, gives way to tokenizer.json.
    """
    model = files.raw("tokenizer.model") if files.has("tokenizer.model") else b""
    if is_sentencepiece(model):
        try:
            return read_sentencepiece(model, n_vocab)
        except UnsupportedError:  # such as Unigram
            if not files.has("tokenizer.json"):
                raise
    if files.has("tokenizer.json"):
        return read_tokenizer_json(files.json("tokenizer.json"), n_vocab)
    if files.has("tekken.json"):
        return read_tekken(files.json("tekken.json"), n_vocab)
    config = files.json("tokenizer_config.json")
    if model:
        return read_tiktoken(model, "tokenizer.model", config, n_vocab)
    if names := [*files.matching("tiktoken.model"), *files.matching("*.tiktoken")]:
        return read_tiktoken(files.raw(names[0]), names[0], config, n_vocab)
    if files.has("vocab.json") and files.has("merges.txt"):
        return read_vocab_and_merges(files, n_vocab)
    if files.has("vocab.txt"):
        return read_vocab_txt(files, n_vocab)
    raise FileProblem(
        "there is no tokenizer; expected tokenizer.json, tokenizer.model, tekken.json, a file of tiktoken, "
        "vocab.json with merges.txt, or vocab.txt"
    )
