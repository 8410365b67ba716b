"""/v1/embeddings and /v1/rerank, for models that are made for it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Model
from edgellm.errors import UsageError
from edgellm.server.openai.types import Accepted
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer, unless_gone

CALLED = {"texts": "input", "token_ids": "input"}
MOST_TEXTS = 2048  # of a request, as OpenAI has it


class EmbeddingRequest(Accepted):
    """/v1/embeddings"""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]] = Field(union_mode="left_to_right")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    # What else the engine knows: see `Model.embed`.
    task: str | None = None
    prompt: str | None = None
    pooling: Literal["mean", "cls", "last"] | None = None
    normalize: bool | None = None
    truncate: bool | None = None

    def keywords(self) -> dict[str, Any]:
        names = ("dimensions", "task", "prompt", "pooling", "normalize", "truncate")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class RerankRequest(Accepted):
    """/v1/rerank, as Jina, Cohere and llama.cpp have it."""

    model: str | None = None
    query: str
    documents: list[str | dict[str, Any]] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    truncate: bool | None = None


async def embed(server: Server, request: Request) -> Response:
    asked = await server.body(request, EmbeddingRequest)

    def work(model: Model) -> tuple[NDArray[np.float32], int]:
        texts = _texts(asked.input)
        return embedded(model, texts, asked.keywords()), n_tokens(model, texts)

    vectors, n = await unless_gone(request, server.ask(request, asked.model, work, CALLED))
    name = request.scope["state"]["record"]["model"]
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(row, asked.encoding_format)}
        for index, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n, "total_tokens": n}
    return JsonAnswer({"object": "list", "data": data, "model": name, "usage": usage})


async def rerank(server: Server, request: Request) -> Response:
    asked = await server.body(request, RerankRequest)
    texts = [_document(index, found) for index, found in enumerate(asked.documents)]

    def work(model: Model) -> tuple[list[float], int]:
        rank = getattr(model, "rank", None)
        if rank is None:
            raise UsageError(f"{model.path.name} gives no scores; ask a model that was made for reranking")
        found = rank(asked.query, texts, truncate=bool(asked.truncate))
        return [float(score) for score in found], n_tokens(model, [asked.query, *texts])

    scores, n = await unless_gone(request, server.ask(request, asked.model, work, {"texts": "documents"}))
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if asked.return_documents:
        for found in results:
            found["document"] = {"text": texts[found["index"]]}
    name = request.scope["state"]["record"]["model"]
    return JsonAnswer({"object": "list", "model": name, "results": results, "usage": {"total_tokens": n}})


def embedded(model: Model, texts: Sequence[str | list[int]], keywords: Mapping[str, Any]) -> NDArray[np.float32]:
    """float32 [n_texts, n]. keywords: those of `Model.embed`. Raises UsageError for a model that cannot."""
    if not texts:
        raise ApiProblem(400, "input is empty; expected at least one text", "input")
    embed = getattr(model, "embed", None)
    if embed is None:
        raise UsageError(f"{model.path.name} gives no embeddings; ask a model that was made for them")
    # Ids alone are given alone, so that an error does not say in which of the texts they are.
    given = texts[0] if len(texts) == 1 and not isinstance(texts[0], str) else list(texts)
    vectors: NDArray[np.float32] = embed(given, **keywords)
    return vectors


def n_tokens(model: Model, texts: Sequence[str | list[int]]) -> int:
    return sum(len(model.tokenize(text, add_special=True) if isinstance(text, str) else text) for text in texts)


def _texts(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Each text, or its token ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    if len(given) > MOST_TEXTS:
        raise ApiProblem(400, f"input holds {len(given)} texts; a request takes up to {MOST_TEXTS}", "input")
    return list(given)  # type: ignore[arg-type]


def _document(index: int, found: str | dict[str, Any]) -> str:
    text = found if isinstance(found, str) else found.get("text")
    if not isinstance(text, str):
        raise ApiProblem(400, f'documents.{index} has no text; expected a text, or {{"text": ...}}', "documents")
    return text


def _encoded(row: NDArray[np.float32], how: str | None) -> str | list[float]:
    if how == "base64":
        return base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode()
    return [float(number) for number in row]
