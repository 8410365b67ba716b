"""What models there are, and embeddings, as Ollama tells them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from math import isfinite, prod
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm._version import __version__
from edgellm.engine import Model
from edgellm.errors import FileProblem
from edgellm.formats.gguf import GGUFFile
from edgellm.server.ollama.types import EmbeddingsRequest, EmbedRequest, Named, ShowRequest
from edgellm.server.openai.embeddings import CALLED, embedded, n_tokens
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer, unless_gone


async def version(server: Server, request: Request) -> Response:
    return JsonAnswer({"version": __version__})


async def tags(server: Server, request: Request) -> Response:
    names = await server.models.names()
    found = await asyncio.to_thread(lambda: [_listed(name, path) for name, path in names.items()])
    return JsonAnswer({"models": [model for model in found if model is not None]})


async def running(server: Server, request: Request) -> Response:
    found = []
    for loaded in server.models.loaded:
        left = loaded.idle - (monotonic() - loaded.used_at)
        ends = datetime.now(timezone.utc) + timedelta(seconds=max(0.0, min(left, 1e9)) if isfinite(left) else 1e9)
        described = await asyncio.to_thread(_listed, loaded.name, loaded.model.path)
        if described is not None:
            more = {"expires_at": ends.isoformat(), "size": loaded.n_bytes, "size_vram": 0}
            found.append({**described, **more, "context_length": loaded.model.n_ctx})
    return JsonAnswer({"models": found})


async def show(server: Server, request: Request) -> Response:
    asked = await server.body(request, ShowRequest)
    return JsonAnswer(await server.ask(request, asked.model, lambda model: _shown(model, bool(asked.verbose))))


async def embed(server: Server, request: Request) -> Response:
    asked = await server.body(request, EmbedRequest)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    started = monotonic()

    def work(model: Model) -> dict[str, Any]:
        keywords: dict[str, Any] = {
            "truncate": asked.truncate is not False
        }  # Ollama cuts what is too long, unless told not to
        if asked.dimensions is not None:
            keywords["dimensions"] = asked.dimensions
        vectors = embedded(model, texts, keywords)
        return {"embeddings": [[float(x) for x in row] for row in vectors], "prompt_eval_count": n_tokens(model, texts)}

    found = await _asked(server, request, asked, work)
    seconds = {"total_duration": round(1e9 * (monotonic() - started)), "load_duration": 0}
    return JsonAnswer({"model": asked.model, **found, **seconds})


async def embeddings(server: Server, request: Request) -> Response:
    asked = await server.body(request, EmbeddingsRequest)
    found = await _asked(server, request, asked, lambda model: embedded(model, [asked.prompt], {})[0])
    return JsonAnswer({"embedding": [float(x) for x in found]})


async def _asked(server: Server, request: Request, asked: Named, work: Any) -> Any:
    def checked(model: Model) -> Any:
        asked.options.check(model)
        return work(model)

    return await unless_gone(request, server.ask(request, asked.model, checked, CALLED, asked.idle))


def _listed(name: str, path: Path) -> dict[str, Any] | None:
    """None for a file that cannot be read."""
    try:
        status = path.stat()
        with GGUFFile.open(path) as file:
            details, size = _details(file), file.n_bytes
    except (OSError, FileProblem):
        return None
    modified = datetime.fromtimestamp(status.st_mtime, timezone.utc).isoformat()
    return {"name": name, "model": name, "modified_at": modified, "size": size, "digest": "", "details": details}


def _details(file: GGUFFile) -> dict[str, Any]:
    family = str(file.metadata.get("general.architecture", ""))
    n_bytes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        n_bytes[tensor.format.name] += tensor.n_bytes
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": _in_words(sum(prod(tensor.shape) for tensor in file.tensors.values())),
        "quantization_level": max(n_bytes, key=lambda name: n_bytes[name], default=""),
    }


def _in_words(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.4g}{unit}"
    return str(n)


def _shown(model: Model, with_arrays: bool) -> dict[str, Any]:
    described = _listed(model.path.stem, model.path) or {"details": {}, "modified_at": None}
    template = vars(model).get("chat_template")  # which a model that makes vectors has not
    makes_vectors = f"{model.config.architecture}.pooling_type" in model.metadata
    can = ["embedding"] if makes_vectors else ["completion"]
    if template is not None:
        can += ["tools"] if template.call_syntax is not None else []
        can += ["thinking"] if template.reasoning is not None else []
    return {
        "modelfile": "",
        "parameters": f"num_ctx {model.n_ctx}",
        "template": "" if template is None else template.source,
        "details": described["details"],
        "model_info": _info(model.metadata, with_arrays),
        "capabilities": can,
        "modified_at": described["modified_at"],
        "license": str(model.metadata.get("general.license", "")),
    }


def _info(metadata: Mapping[str, Any], with_arrays: bool) -> dict[str, Any]:
    """Numbers and texts of the file; its arrays only if somebody asks for all."""
    found: dict[str, Any] = {}
    for key, value in metadata.items():
        if isinstance(value, (str, bool, int)):
            found[key] = value
        elif isinstance(value, float):
            found[key] = value if isfinite(value) else str(value)
        else:
            found[key] = [_plain(item) for item in value] if with_arrays else None
    return found


def _plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return str(plain) if isinstance(plain, float) and not isfinite(plain) else plain
