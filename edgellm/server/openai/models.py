"""/v1/models"""

from __future__ import annotations

from datetime import datetime, timezone

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
        # In the words of Anthropic, whose clients ask at the same address.
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(server.models.started, timezone.utc).isoformat(),
    }
    for loaded in server.models.loaded:
        if loaded.name == name:
            found |= {"loaded": True, "max_model_len": loaded.model.n_ctx}
    return found


async def list_models(server: Server, request: Request) -> Response:
    data = [_described(server, name) for name in await server.models.names()]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return JsonAnswer({"object": "list", "data": data, "has_more": False, **ends})


async def show_model(server: Server, request: Request) -> Response:
    name = await server.models.find(request.path_params["model"])
    return JsonAnswer(_described(server, name))
