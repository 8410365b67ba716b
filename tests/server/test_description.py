"""The server against its own description: whatever a request holds that fits it, or does not, no mistake of the server.

`HYPOTHESIS_PROFILE=search` tries more.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")

N_EXAMPLES = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "search" else 12
# So that an answer takes moments: what bounds it, in the words of each interface.
BOUNDS = {
    "/v1/chat/completions": {"max_tokens": 2},
    "/v1/completions": {"max_tokens": 2},
    "/v1/responses": {"max_output_tokens": 2},
    "/v1/messages": {"max_tokens": 2},
    "/api/chat": {"options": {"num_predict": 2}},
    "/api/generate": {"options": {"num_predict": 2}},
}
MODEL_IN = (*BOUNDS, "/v1/embeddings", "/v1/rerank", "/tokenize", "/detokenize", "/v1/messages/count_tokens",
            "/api/show", "/api/embed", "/api/embeddings")  # fmt: skip


def check(case: schemathesis.Case) -> None:
    path = case.operation.path
    if isinstance(case.body, dict):
        case.body = {**case.body, **BOUNDS.get(path, {})}
        if path in MODEL_IN and len(str(case.body)) % 4:  # most ask for the model that there is
            case.body["model"] = "tiny"
    answer = case.call(timeout=30)
    assert answer.status_code < 500, answer.text[:500]
    if answer.status_code >= 400:
        assert answer.json()["error"]


def test_no_request_makes_the_server_fail(small) -> None:
    """Requests that fit the description, and others that do not."""
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    rules = settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    n_tried = 0
    for operation in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            strategy = operation.ok().as_strategy(generation_mode=mode)
            with contextlib.suppress(Unsatisfiable):  # a request without parameters cannot be wrong
                rules(given(case=strategy)(check))()
                n_tried += 1
    assert n_tried > 30


def test_everything_that_is_answered_is_described(small) -> None:
    found = small.get("/openapi.json").json()
    routes = {route.path.replace(":path", "") for route in small.application.guard.routes.routes}
    assert set(found["paths"]) == routes
    for path in BOUNDS:
        reference = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.rsplit("/", 1)[1] in found["components"]["schemas"]
