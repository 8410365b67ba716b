"""/openapi.json: the server as it describes itself (OpenAPI 3.1), by the types that requests are checked by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from edgellm._version import __version__
from edgellm.server.anthropic.types import CountRequest, MessagesRequest
from edgellm.server.ollama import types as ollama
from edgellm.server.openai.batches import BatchRequest
from edgellm.server.openai.embeddings import EmbeddingRequest, RerankRequest
from edgellm.server.openai.response_types import InputTokensRequest, ResponsesRequest
from edgellm.server.openai.tokenizing import DetokenizeRequest, TokenizeRequest
from edgellm.server.openai.types import ChatRequest, CompletionRequest

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": InputTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/rerank": RerankRequest,
    "/v1/batches": BatchRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/api/chat": ollama.ChatRequest,
    "/api/generate": ollama.GenerateRequest,
    "/api/show": ollama.ShowRequest,
    "/api/embed": ollama.EmbedRequest,
    "/api/embeddings": ollama.EmbeddingsRequest,
}
UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch", "user_data"]},
    },
    "required": ["file", "purpose"],
}
_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")


def description(routes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """routes: method and path of everything that is answered."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for method, path in routes:
        operation: dict[str, Any] = {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _PARAMETER.findall(path)
            ],
            "responses": {"200": {"description": "The answer."}, "default": {"description": "What was wrong."}},
        }
        if method == "POST" and path in BODIES:
            schema = _schema(path, BODIES[path], schemas)
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        elif (method, path) == ("POST", "/v1/files"):
            operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD}}}
        paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgellm", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _schema(path: str, kind: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """A reference to the schema of a type; what it consists of is named by the path, as two types may share a name."""
    prefix = re.sub(r"\W+", "_", path).strip("_")
    found = kind.model_json_schema(ref_template=f"#/components/schemas/{prefix}.{{model}}")
    for name, inner in found.pop("$defs", {}).items():
        schemas[f"{prefix}.{name}"] = inner
    schemas[prefix] = found
    return {"$ref": f"#/components/schemas/{prefix}"}
