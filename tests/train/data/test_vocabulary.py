"""A model's tokenizer, template and rows, from its file and from the loaded model."""

from __future__ import annotations

import pytest

from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.formats.gguf import GGUFWriter
from edgellm.train.data.vocabulary import Vocabulary, read_vocabulary
from tests.text import oracles

from .vocabularies import CHATML, user


def test_a_file_and_the_loaded_model_are_alike(tiny_path, model):
    for found in (read_vocabulary(tiny_path), Vocabulary.of(model)):
        assert found.template is None and found.n_rows == model.n_vocab
        assert found.tokenizer.encode("in the hills") == model.tokenize("in the hills")


def test_templates(tmp_path):
    path = tmp_path / "vocabulary.gguf"
    GGUFWriter(path, {**oracles.train_byte_level("gpt-2"), "tokenizer.chat_template": CHATML}, []).write()
    own = read_vocabulary(path)
    assert own.template is not None and own.n_rows == own.tokenizer.n_vocab
    assert "<|im_start|>" in own.template.render([user("Hi")])
    assert read_vocabulary(path, "none").template is None
    (tmp_path / "other.jinja").write_text("\ufeff{{ messages[0].content }} {{ eos_token }}", "utf-8")
    other = read_vocabulary(path, tmp_path / "other.jinja").template
    assert other is not None and other.render([user("Hi")]) == "Hi <|end|>"
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    with pytest.raises(FileProblem, match="is no chat template"):
        read_vocabulary(path, tmp_path / "bad.jinja")


def test_templates_by_name(tmp_path, tiny_path, model):
    for found in (read_vocabulary(tiny_path, "chatml"), Vocabulary.of(model, "chatml")):
        assert found.template is not None and "<|im_start|>user\nHi<|im_end|>" in found.template.render([user("Hi")])
    with pytest.raises(
        UsageError, match="template is 'chatmls', which is neither a file nor a known name; did you mean"
    ):
        read_vocabulary(tiny_path, "chatmls")
    (tmp_path / "words.jinja").write_text("chatml")
    with pytest.raises(UsageError, match=r"words\.jinja writes nothing of what messages say"):
        read_vocabulary(tiny_path, tmp_path / "words.jinja")


def test_a_file_without_a_vocabulary(tmp_path):
    GGUFWriter(tmp_path / "a.gguf", {"general.architecture": "llama"}, []).write()
    with pytest.raises(FormatError, match=r"a\.gguf: tokenizer\.ggml\.model is missing"):
        read_vocabulary(tmp_path / "a.gguf")
