"""Embeddings and ranking, as far as they are the server's work: with a model whose vectors stand in a table."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgellm.engine import Model
from edgellm.errors import UsageError

openai = pytest.importorskip("openai")


class Table:
    """What a model that makes vectors has: numbers that follow from the texts."""

    def embed(self, texts, dimensions=None, truncate=False):
        if any(text == "" for text in texts):
            raise UsageError(f"texts[{texts.index('')}] is empty; leave it out")
        texts = [texts] if texts and isinstance(texts[0], int) else texts
        texts = [text if isinstance(text, str) else "a" * sum(text) for text in texts]
        rows = np.array([[len(text), text.count("a"), 1, truncate] for text in texts], np.float32)
        return rows if dimensions is None else np.ascontiguousarray(rows[:, :dimensions])

    def rank(self, query, texts, truncate=False):
        return np.array([len(set(query) & set(text)) for text in texts], np.float32)


@contextmanager
def with_vectors() -> Iterator[None]:
    """Every model makes those."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("embed", "rank"):
            patch.setattr(Model, name, lambda self, *args, name=name, **more: getattr(Table(), name)(*args, **more),
                          raising=False)  # fmt: skip
        yield


@pytest.fixture(scope="module")
def client(small):
    with with_vectors(), openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_texts_alone_and_several_in_both_encodings(client, small) -> None:
    one = client.embeddings.create(model="tiny", input="abca")  # the client asks for base64
    assert one.data[0].embedding == [4, 2, 1, 0]
    assert one.usage.prompt_tokens > 0
    several = client.embeddings.create(model="tiny", input=["a", "bb"], encoding_format="float", dimensions=2)
    assert [item.embedding for item in several.data] == [[1, 1], [2, 0]]
    raw = small.post("/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "base64"}).json()
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4").tolist() == [1, 1, 1, 0]


def test_token_ids_are_taken_as_they_are(client, small) -> None:
    """1 and 2 stand around texts, and were lost where ids became a text in between."""
    one = client.embeddings.create(model="tiny", input=[1, 1, 2])
    assert (one.data[0].embedding, one.usage.prompt_tokens) == ([4, 4, 1, 0], 3)
    several = client.embeddings.create(model="tiny", input=[[1, 1, 2], [2]])
    assert ([item.embedding[0] for item in several.data], several.usage.prompt_tokens) == ([4, 2], 4)


def test_what_cannot_be_is_told_in_the_words_of_the_request(client) -> None:
    for wrong in ("", ["a", ""]):
        with pytest.raises(openai.BadRequestError, match=r"input\[\d\] is empty"):
            client.embeddings.create(model="tiny", input=wrong)
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        client.embeddings.create(model="tiny", input=[])


def test_the_best_come_first(client, small) -> None:
    asked = {"model": "tiny", "query": "abc", "documents": ["xyz", {"text": "cab"}, "ax"], "top_n": 2}
    found = small.post("/v1/rerank", {**asked, "return_documents": True}).json()
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [(1, 3.0), (2, 1.0)]
    assert found["results"][0]["document"] == {"text": "cab"}
    wrong = small.post("/v1/rerank", {**asked, "documents": [{"title": "a"}]})
    assert wrong.status_code == 400 and "documents.0" in wrong.json()["error"]["message"]


def test_as_ollama_asks(client, small) -> None:
    found = small.post("/api/embed", {"model": "tiny", "input": ["a", "aa"]}).json()
    assert found["embeddings"] == [[1, 1, 1, 1], [2, 2, 1, 1]] and found["prompt_eval_count"] > 0
    assert small.post("/api/embeddings", {"model": "tiny", "prompt": "a"}).json()["embedding"] == [1, 1, 1, 0]
