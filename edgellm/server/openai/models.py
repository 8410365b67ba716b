"""/v1/models"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer


def _described(server: Server, name: str) -> dict[str, object]:
    found: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": server.models.started,
        "owned_by": "edgellm",
        "loaded": False,
    }
    for loaded in server.models.loaded:
        if loaded.name == name:
            found |= {"loaded": True, "max_model_len": loaded.model.n_ctx}
    return found


async def list_models(server: Server, request: Request) -> Response:
    names = await server.models.names()
    return JsonAnswer({"object": "list", "data": [_described(server, name) for name in names]})


async def show_model(server: Server, request: Request) -> Response:
    name = await server.models.find(request.path_params["model"])
    return JsonAnswer(_described(server, name))
