"""What stands around a vocabulary: rules by their meaning, added tokens, roles, ends of turns, chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Original

from edgellm.convert.checkpoints import open_source
from edgellm.convert.vocabulary import tokenizer_metadata, write_tokenizer
from edgellm.convert.vocabulary.patterns import form_of
from edgellm.errors import FormatError, UnsupportedError
from edgellm.text import ChatTemplate, load_tokenizer
from tests.convert import checkpoints
from tests.convert import tokenizer_folders as folders
from tests.text import oracles

N_VOCAB = 1000
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a byte-level tokenizer.json, whose last tokens are <|end|> <|im_start|> <|im_end|> <tool> "  "."""
    folders.byte_level(tmp_path, "smollm")
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "tokenizer.json"
    folders.write_json(path, folders.read_json(path) | values)


def metadata_of(folder: Path, **configs: Any) -> dict[str, Any]:
    """The metadata with some more JSON files in the folder."""
    for name, values in configs.items():
        folders.write_json(folder / f"{name}.json", values)
    found = tokenizer_metadata(folder, N_VOCAB)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in found.items()}


def ids_of(folder: Path) -> dict[str, int]:
    values = folders.read_json(folder / "tokenizer.json")
    return values["model"]["vocab"] | {token["content"]: token["id"] for token in values["added_tokens"]}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([split(oracles.QWEN2), BYTES], "deepseek-r1-qwen"),
        ([split(oracles.QWEN2, "Removed", True), BYTES], "deepseek-r1-qwen"),
        ([split(oracles.QWEN2.replace(r"\r\n", "\r\n")), BYTES], "deepseek-r1-qwen"),
        ([split(oracles.QWEN2.replace(r"\p{N}|", r"[\p{N}]|")), BYTES], "deepseek-r1-qwen"),
        ([{"type": "Sequence", "pretokenizers": [split(oracles.LLAMA3)]}, BYTES], "dbrx"),
        ([split(oracles.GPT2), BYTES], "gpt-2"),
        ([{**BYTES, "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}], "smollm"),
        ([split(r"\p{N}"), split(oracles.GPT2), BYTES], "smollm"),
    ],
)
def test_rules_are_known_by_their_meaning(folder, steps, name):
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert metadata_of(folder)["pre"] == name


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([split(oracles.QWEN2 + "|x"), BYTES], r"\|x"),
        ([split(oracles.QWEN2, "MergedWithNext"), BYTES], "MergedWithNext"),
        ([split(r"\p{N}", "Removed", True), split(oracles.GPT2), BYTES], "Removed"),
        ([{**BYTES, "add_prefix_space": True}], "add_prefix_space"),
        ([{**BYTES, "use_regex": True}, {"type": "Digits", "individual_digits": True}], "ByteLevel"),
        ([{"type": "Digits", "individual_digits": False}, {**BYTES, "use_regex": True}], "individual_digits"),
        ([{"type": "Whitespace"}, BYTES], "Whitespace"),
    ],
)
def test_other_rules_are_refused_and_shown(folder, steps, shown):
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    with pytest.raises(UnsupportedError, match=shown):
        metadata_of(folder)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("normalizer", {"type": "NFKC"}, "NFKC"),
        ("post_processor", {"type": "Mystery"}, "Mystery"),
        ("pre_tokenizer", None, "neither byte-level"),
    ],
)
def test_other_steps_are_refused_and_shown(folder, key, value, shown):
    change(folder, **{key: value})
    with pytest.raises(UnsupportedError, match=shown):
        metadata_of(folder)


def test_composed_text_is_part_of_a_rule(folder):
    change(folder, normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]})
    assert metadata_of(folder)["pre"] == "command-r"
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": [split(oracles.LLAMA3), BYTES]})
    with pytest.raises(UnsupportedError, match=r"composed text \(NFC\)"):
        metadata_of(folder)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (r"\p{L}+", r"[\p{L}]+", True),
        (r"[a-cx]", r"[xabc]", True),
        (r"[\r\n]", "[\n\r]", True),
        (r"\u0041", "A", True),
        (r"[^\s\p{L}]", r"[^\p{L}\s]", True),
        (r"[\]a-]", r"[a\-\]]", True),
        (r"[abc]", r"[^abc]", False),
        (r"\p{L}", r"\P{L}", False),
        (r"\s+(?!\S)|\s+", r"\s+|\s+(?!\S)", False),
        (r".", r"\.", False),
        (r"a{1,3}", r"a{1,4}", False),
        (r"[[:alpha:]]", r"[[:alpha:]]", True),
        (r"[a-z&&[^b]]", r"[a-z]", False),
        (r"\s*", r"\s*+", False),
    ],
)
def test_patterns_are_compared_by_their_sets(one, other, alike):
    assert (form_of(one) == form_of(other)) == alike


def test_whole_words_must_be_made_by_merges(folder):
    model = folders.read_json(folder / "tokenizer.json")["model"]
    change(folder, model=model | {"ignore_merges": True})
    assert metadata_of(folder)["pre"] == "smollm"  # nothing differs: merges make every token
    vocab = model["vocab"] | {"Ġxqzw": len(model["vocab"])}
    added = folders.read_json(folder / "tokenizer.json")["added_tokens"]
    behind = [token | {"id": token["id"] + 1} for token in added]
    change(folder, model=model | {"ignore_merges": True, "vocab": vocab}, added_tokens=behind)
    with pytest.raises(UnsupportedError, match=r"Ġxqzw.*come out differently"):
        metadata_of(folder)


def test_types_of_added_tokens(folder):
    n = len(ids_of(folder))
    added = {str(n): {"content": "<think>", "special": False}, str(n + 1): {"content": "<|x|>", "special": False}}
    found = metadata_of(folder, tokenizer_config={"added_tokens_decoder": added}, added_tokens={"<more>": n + 2})
    types = dict(zip(found["tokens"], found["token_type"].tolist(), strict=True))
    assert [types[text] for text in folders.SPECIAL] == [3, 3, 3]
    assert [types[text] for text in [*folders.ADDED, "<think>", "<more>"]] == [4, 4, 4, 4]
    assert types["<|x|>"] == 3  # it steers the model, whatever the file says
    assert types["Ġthe"] == 1 and types["[PAD999]"] == 5


def test_an_id_with_two_names_is_refused(folder):
    config = {"added_tokens_decoder": {"5": {"content": "<new>", "special": True}}}
    with pytest.raises(FormatError, match=r"the id 5 stands for .* and '<new>'"):
        metadata_of(folder, tokenizer_config=config)


def test_a_sentencepiece_piece_may_be_renamed(tmp_path):
    folders.sentencepiece(tmp_path)
    config = {"added_tokens_decoder": {"3": {"content": "<|new|>", "special": True}}}
    found = metadata_of(tmp_path, tokenizer_config=config, added_tokens={"<later>": 750})
    assert found["tokens"][3] == "<|new|>" and found["token_type"][3] == 3
    assert found["tokens"][750] == "<later>" and found["token_type"][750] == 4


def test_roles(folder):
    ids = ids_of(folder)
    config = {
        "bos_token": {"content": "<|im_start|>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "pad_token": "[absent]",
        "unk_token": None,
        "add_bos_token": True,
    }
    found = metadata_of(folder, tokenizer_config=config, config={"bos_token_id": 3, "pad_token_id": ids["<|end|>"]})
    assert found["bos_token_id"] == ids["<|im_start|>"] and found["eos_token_id"] == ids["<|im_end|>"]
    assert found["padding_token_id"] == ids["<|end|>"] and "unknown_token_id" not in found
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, False)


def test_roles_of_older_files(folder):
    ids = ids_of(folder)
    found = metadata_of(
        folder, special_tokens_map={"eos_token": "<|im_end|>"}, config={"text_config": {"bos_token_id": 7}}
    )
    assert found["eos_token_id"] == ids["<|im_end|>"] and found["bos_token_id"] == 7


def test_the_token_that_is_put_behind_a_text_ends_it(folder):
    ids = ids_of(folder)
    end = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    explained = {"<|end|>": {"id": "<|end|>", "ids": [ids["<|end|>"]], "tokens": ["<|end|>"]}}
    change(folder, post_processor={
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, end], "pair": [],
        "special_tokens": explained})  # fmt: skip
    found = metadata_of(folder, tokenizer_config={"eos_token": "<|im_end|>"})
    assert (found["eos_token_id"], found["eot_token_id"]) == (ids["<|end|>"], ids["<|im_end|>"])
    assert found["add_eos_token"] is True and found["add_bos_token"] is False


def test_tokens_that_end_an_answer(folder):
    ids = ids_of(folder)
    ends = {"eos_token_id": [ids["<|end|>"], ids["<|im_end|>"], ids["<tool>"]]}
    found = metadata_of(folder, tokenizer_config={"eos_token": "<|end|>"}, generation_config=ends)
    assert found["eot_token_id"] == ids["<|im_end|>"] and found["eom_token_id"] == ids["<tool>"]
    stops = load_tokenizer(tokenizer_metadata(folder, N_VOCAB)).stop_ids
    assert stops == {ids["<|end|>"], ids["<|im_end|>"], ids["<tool>"]}


def test_a_chat_template_as_text(folder):
    found = metadata_of(
        folder, tokenizer_config={"chat_template": "{{ 1 }}"}, chat_template={"chat_template": "{{ 2 }}"}
    )
    assert found["chat_template"] == "{{ 1 }}" and "chat_templates" not in found
    (folder / "chat_template.jinja").write_text("{{ 3 }}", encoding="utf-8")
    assert metadata_of(folder)["chat_template"] == "{{ 3 }}"


def test_a_chat_template_of_its_own_file(folder):
    assert metadata_of(folder, chat_template={"chat_template": "{{ 2 }}"})["chat_template"] == "{{ 2 }}"


def test_chat_templates_by_name(folder):
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
                 {"name": "a-b", "template": "other"}]  # fmt: skip
    found = metadata_of(folder, tokenizer_config={"chat_template": templates})
    assert found["chat_template"] == "plain" and found["chat_template.tool_use"] == "tools"
    assert found["chat_template.a_b"] == "other" and sorted(found["chat_templates"]) == ["a_b", "tool_use"]
    metadata = tokenizer_metadata(folder, N_VOCAB)
    template = ChatTemplate.from_metadata(metadata, load_tokenizer(metadata))
    assert template is not None
    assert template.render([]) == "plain" and template.render([], tools=[{"x": 1}]) == "tools"


def test_two_chat_templates_that_gguf_has_one_name_for(folder):
    templates = [{"name": name, "template": name} for name in ("default", "tool_use", "tool-use")]
    with pytest.raises(FormatError, match="two chat templates are called 'tool_use' and 'tool-use'"):
        metadata_of(folder, tokenizer_config={"chat_template": templates})


@pytest.mark.parametrize("name", ["processor_config.json", "chat_template.json"])
def test_a_chat_template_of_a_processor(folder, name):
    """Some models that also see have it there alone; what the tokenizer has itself counts before."""
    folders.write_json(folder / name, {"chat_template": "seen"})
    assert metadata_of(folder)["chat_template"] == "seen"
    assert metadata_of(folder, tokenizer_config={"chat_template": "read"})["chat_template"] == "read"


def test_additional_chat_templates(folder):
    (folder / "chat_template.jinja").write_text("plain", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("docs", encoding="utf-8")
    found = metadata_of(folder)
    assert (found["chat_template"], found["chat_template.rag"], found["chat_templates"]) == ("plain", "docs", ["rag"])


def test_the_space_in_front_can_be_turned_off(tmp_path):
    folders.sentencepiece(tmp_path)
    assert metadata_of(tmp_path)["add_space_prefix"] is True
    found = metadata_of(tmp_path, tokenizer_config={"add_prefix_space": False, "add_bos_token": False})
    assert (found["add_space_prefix"], found["add_bos_token"]) == (False, False)


def test_all_tokens_that_end_an_answer_are_kept(folder):
    ids = ids_of(folder)
    ends = [ids[text] for text in ("<|end|>", "<tool>", "a", "b", "c")]
    folders.write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>"})
    folders.write_json(folder / "generation_config.json", {"eos_token_id": ends})
    metadata = tokenizer_metadata(folder, N_VOCAB)
    assert metadata["edgellm.tokenizer.stop_ids"].tolist() == sorted(ends)
    assert load_tokenizer(metadata).stop_ids == {*ends, ids["<|im_end|>"]}
    (folder / "again").mkdir()
    write_tokenizer(metadata, folder / "again")
    again = load_tokenizer(tokenizer_metadata(folder / "again", N_VOCAB))
    assert again.stop_ids == load_tokenizer(metadata).stop_ids and again.eos_id == ends[0]


def test_ends_that_cannot_be_kept_are_told(folder):
    notes: list[str] = []
    ends = {"eos_token_id": [3, N_VOCAB + 7], "stop_strings": ["User:"]}
    folders.write_json(folder / "generation_config.json", ends)
    metadata = tokenizer_metadata(folder, N_VOCAB, notes)
    assert 3 in load_tokenizer(metadata).stop_ids
    assert len(notes) == 2 and "eos_token_id 1007 is left out" in notes[0] and '"User:"' in notes[1]


def test_what_belongs_to_batches_is_left_out_and_told(folder):
    change(folder, truncation={"max_length": 512}, padding={"strategy": "BatchLongest"})
    notes: list[str] = []
    tokenizer_metadata(folder, N_VOCAB, notes)
    assert [note.split(" {")[0] for note in notes] == ["tokenizer.json: truncation", "tokenizer.json: padding"]


SPACED = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@pytest.mark.parametrize(
    ("kind", "decoder", "told"),
    [
        ("bytes", BYTES, None),
        ("bytes", None, None),
        ("bytes", {"type": "Sequence", "decoders": [BYTES, SPACED | {"content": "_"}]}, "Replace"),
        ("bytes", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ("spaces", {"type": "Sequence", "decoders": [SPACED, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]}, None),
        ("spaces", {"type": "Sequence", "decoders": [SPACED, STRIP | {"stop": 1}]}, "Strip"),
        ("spaces", SPACED | {"content": ""}, "Replace"),
        ("spaces", {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}, "Metaspace"),
    ],
)
def test_a_decoder_that_is_not_usual_is_left_out_and_told(tmp_path, kind, decoder, told):
    folders.byte_level(tmp_path, "smollm") if kind == "bytes" else folders.of_sentencepiece(tmp_path)
    change(tmp_path, decoder=decoder)
    notes: list[str] = []
    tokenizer_metadata(tmp_path, N_VOCAB, notes)
    assert [note for note in notes if "the decoder" in note] == notes and len(notes) == (told is not None)
    assert told is None or (f'the decoder {{"type": "{told}"' in notes[0] and "is left out" in notes[0])


def test_usual_files_need_no_keys_of_our_own(folder, tmp_path_factory):
    spaced = tmp_path_factory.mktemp("spaced")
    folders.sentencepiece(spaced)
    for path in (folder, spaced):
        assert not [key for key in tokenizer_metadata(path, N_VOCAB) if key.startswith("edgellm.")]


@pytest.mark.parametrize("legacy", [False, True, None])
def test_legacy_says_whether_a_space_follows_a_special_token(tmp_path, legacy):
    folders.sentencepiece(tmp_path)
    folders.write_json(tmp_path / "tokenizer_config.json", {} if legacy is None else {"legacy": legacy})
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB))
    ids = ours.encode("Hi</s>Hi", parse_special=True)
    once = legacy is False
    assert "".join(map(ours.token_name, ids)) == ("▁Hi</s>Hi" if once else "▁Hi</s>▁Hi")
    assert ours.decode(ids) == "Hi</s>Hi" and ours.decode(ids, skip_special=True) == "HiHi"
    assert "".join(map(ours.token_name, ours.encode(" Hi"))) == ("▁Hi" if once else "▁▁Hi")
    ids = ours.encode("Hi", add_special=True)
    assert ours.decode(ids, skip_special=True) == "Hi"


def test_tokenizer_json_beside_a_sentencepiece_model_says_where_spaces_go(tmp_path):
    original = folders.of_sentencepiece(tmp_path, metaspace=True)
    folders.sentencepiece(tmp_path)
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB))
    for text in ("Hi", " Hi", "  Hi", "", " ", "Hi</s>Hi", "Hi</s> Hi", "</s>Hi <s></s> Hi", "<s><s>Hi"):
        assert ours.encode(text, parse_special=True) == original.encode(text, add_special_tokens=False).ids, text


def test_tokenizer_json_that_spells_otherwise_than_the_model_beside_it_is_told(tmp_path: Path) -> None:
    folders.of_sentencepiece(tmp_path)
    model = folders.sentencepiece(tmp_path)
    notes: list[str] = []
    tokenizer_metadata(tmp_path, N_VOCAB, notes)
    assert notes == []  # its user-defined tokens have other names there
    spaces = model.piece_to_id("\u2581\u2581\u2581")
    values = folders.read_json(tmp_path / "tokenizer.json")
    vocab = values["model"]["vocab"]
    (name,) = (text for text, token_id in vocab.items() if token_id == spaces)
    vocab["\u2581\u2581\u2581"] = vocab.pop(name)  # a token that no merge makes
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] != spaces]
    folders.write_json(tmp_path / "tokenizer.json", values)
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB, notes))
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a   b", "   ", "the   a\n", "      x"):
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids != model.encode(text)
    (note,) = notes
    assert "tokenizer.model and tokenizer.json disagree on" in note and 'texts: "  ' in note
    assert "tokenizer.json counts, as in transformers: take it away if" in note


def test_tokenizer_json_with_other_ids_than_the_model_beside_it_is_told(tmp_path: Path) -> None:
    folders.of_sentencepiece(tmp_path)
    folders.sentencepiece(tmp_path)
    values = folders.read_json(tmp_path / "tokenizer.json")
    vocab = values["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    folders.write_json(tmp_path / "tokenizer.json", values)
    notes: list[str] = []
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB, notes))
    assert ours.encode("e t") == Original.from_file(str(tmp_path / "tokenizer.json")).encode("e t").ids
    (note,) = notes
    assert "disagree" in note


def test_a_token_that_is_found_here_and_made_there(tmp_path):
    folders.of_sentencepiece(tmp_path)
    values = folders.read_json(tmp_path / "tokenizer.json")
    token = values["added_tokens"][0] | {"id": values["model"]["vocab"]["the"], "content": "the", "special": False}
    values["added_tokens"].append(token | {"single_word": True})
    folders.write_json(tmp_path / "tokenizer.json", values)
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB))
    for text in ("the", " the", "other", "the other", "xthe the, the"):
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids, text


UNUSUAL: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ({"normalizer": None, "pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "Digits"),
    ({"normalizer": None, "pre_tokenizer": BYTES}, "ByteLevel"),
    ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}, "WordLevel"),
    ({"model": None}, "model is missing"),
]


@pytest.mark.parametrize(("changes", "says"), UNUSUAL, ids=[says for _, says in UNUSUAL])
def test_a_tokenizer_json_that_is_not_read_is_refused_beside_another_file(tmp_path, changes, says):
    """transformers would take the ids of tokenizer.json, which are others: a person has to say which is meant."""
    folders.of_sentencepiece(tmp_path)
    folders.sentencepiece(tmp_path)
    assert metadata_of(tmp_path)["model"] == "llama"
    change(tmp_path, **changes)
    with pytest.raises((FormatError, UnsupportedError), match=f"{says}.*: take tokenizer.json away if"):
        metadata_of(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert metadata_of(tmp_path)["model"] == "llama"


def test_a_tokenizer_json_of_another_kind_counts(tmp_path):
    original = folders.byte_level(tmp_path, "smollm")
    folders.sentencepiece(tmp_path)
    notes: list[str] = []
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB, notes))
    assert ours.encode("Hello 12") == original.encode("Hello 12", add_special_tokens=False).ids
    assert any("are of different kinds; tokenizer.json counts" in note for note in notes)


def test_a_byte_without_a_token_is_unknown(tmp_path):
    """Gemini's file has none for tabs, which are a token themselves; other bytes stand for characters still."""
    folders.of_sentencepiece(tmp_path)
    values = folders.read_json(tmp_path / "tokenizer.json")
    values["model"]["vocab"]["<no byte>"] = values["model"]["vocab"].pop("<0xE2>")
    folders.write_json(tmp_path / "tokenizer.json", values)
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tokenizer_metadata(tmp_path, N_VOCAB))
    unknown_and_bytes = ("\u2160\u4e2dthe", "\u4e2d\u2160\u4e2d\u2160", "\u2160\u4e2d\u2160 \u2160\u4e2d")
    for text in ("\u4e2d\u6587", "\u2160", "the\u2160\u2160the\u4e2d", "\u2160 \u2160", *unknown_and_bytes):
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids, text


def test_a_chat_template_that_is_no_jinja_is_told(tmp_path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% if %}", encoding="utf-8")
    with open_source(tmp_path / "model") as source:
        assert any("tokenizer.chat_template cannot be used for chats: " in note for note in source.notes)
