"""/v1/batches: many requests in a file, answered when nobody else is waiting any longer than fairness asks.

A line of the file is answered as the same request over HTTP would be, by the same routes.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time
from typing import Any, Literal

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from edgellm.errors import FormatError
from edgellm.formats import strict_json
from edgellm.server.kept import Kept
from edgellm.server.openai.files import Files
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.sampling import Strict
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer, as_json

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MOST_LINES = 50_000
MOST_UNFINISHED = 16
AT_A_TIME = 8  # lines of one batch
DAY = 24 * 3600


class BatchRequest(Strict):
    """/v1/batches"""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class BatchLine(Strict):
    """A line of a batch's file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass
class Batch:
    """How far it has come."""

    id: str
    owner: str
    asked: BatchRequest
    lines: list[BatchLine]
    created: int = field(default_factory=lambda: int(time()))
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    n_lines: int = 0
    n_done: int = 0
    n_failed: int = 0
    output: str | None = None
    errors: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    def become(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time())

    def described(self) -> dict[str, Any]:
        moments = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked.endpoint,
            "errors": None,
            "input_file_id": self.asked.input_file_id,
            "completion_window": self.asked.completion_window,
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.errors,
            "created_at": self.created,
            "expires_at": self.created + DAY,
            **{f"{moment}_at": self.times.get(f"{moment}_at") for moment in moments},
            "request_counts": {"total": self.n_lines, "completed": self.n_done, "failed": self.n_failed},
            "metadata": self.asked.metadata,
        }


class Batches:
    """All that are kept, and the tasks that work on them."""

    def __init__(self, files: Files, routes: Callable[[], ASGIApp]) -> None:
        self._files, self._routes = files, routes
        self.kept: Kept[Batch] = Kept("batch", "batch_", 1000)

    async def create(self, server: Server, request: Request) -> Response:
        asked = await server.body(request, BatchRequest)
        owner = _owner(request)
        file = self._files.kept.get(asked.input_file_id, owner)
        if sum(not batch.is_over for batch in self.kept.all()) >= MOST_UNFINISHED:
            raise ApiProblem(429, f"{MOST_UNFINISHED} batches are being worked on already; come back later",
                             headers={"Retry-After": "60"})  # fmt: skip
        lines = await asyncio.to_thread(lambda: _lines(file.read(), asked.endpoint))
        batch = Batch(self.kept.new_name(), owner, asked, lines, n_lines=len(lines))
        batch.task = asyncio.ensure_future(self._work(batch))
        self.kept.put(batch.id, owner, batch)
        return JsonAnswer(batch.described())

    async def index(self, server: Server, request: Request) -> Response:
        data = [batch.described() for batch in self.kept.of(_owner(request))]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JsonAnswer({"object": "list", "data": data, "has_more": False, **ends})

    async def show(self, server: Server, request: Request) -> Response:
        return JsonAnswer(self.kept.get(request.path_params["id"], _owner(request)).described())

    async def cancel(self, server: Server, request: Request) -> Response:
        batch = self.kept.get(request.path_params["id"], _owner(request))
        if batch.status not in ("validating", "in_progress", "cancelling"):
            raise ApiProblem(409, f"the batch is {batch.status} already")
        if batch.task is not None and batch.status != "cancelling":
            batch.become("cancelling")
            batch.task.cancel()
        return JsonAnswer(batch.described())

    async def close(self) -> None:
        tasks = [batch.task for batch in self.kept.all() if batch.task is not None and not batch.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, batch: Batch) -> None:
        """Answer all lines; what is there when it is cancelled is kept."""
        batch.become("in_progress")
        answers: dict[int, dict[str, Any]] = {}
        left = iter(enumerate(batch.lines))

        async def work() -> None:
            for index, line in left:
                status, body = await self._answered(batch, line)
                answers[index] = {
                    "id": f"batch_req_{batch.id[-8:]}_{index}",
                    "custom_id": line.custom_id,
                    "response": {"status_code": status, "request_id": f"{batch.id}_{index}", "body": body},
                    "error": None,
                }
                batch.n_done += status < 400
                batch.n_failed += status >= 400

        tasks = [asyncio.ensure_future(work()) for _ in range(AT_A_TIME)]
        try:
            await asyncio.gather(*tasks)
            batch.become("finalizing")
            end = "completed"
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            end = "cancelled"
        batch.lines = []
        try:
            is_good = {index: found["response"]["status_code"] < 400 for index, found in answers.items()}
            batch.output = self._written(
                batch, [answers[index] for index in sorted(answers) if is_good[index]], "output"
            )
            batch.errors = self._written(
                batch, [answers[index] for index in sorted(answers) if not is_good[index]], "errors"
            )
        except ApiProblem:
            end = "failed"
        batch.become(end)

    def _written(self, batch: Batch, answers: list[dict[str, Any]], what: str) -> str | None:
        if not answers:
            return None
        data = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the server
        for found in answers:
            data.write(f"{as_json(found)}\n".encode())
        return self._files.add(batch.owner, f"{batch.id}_{what}.jsonl", "batch_output", data, data.tell()).id

    async def _answered(self, batch: Batch, line: BatchLine) -> tuple[int, Any]:
        """The status and body of a line's answer."""
        body = json.dumps(line.body).encode()
        status, parts = 500, []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()  # this client never leaves
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        record: dict[str, Any] = {}
        scope: Scope = {
            "type": "http", "method": "POST", "path": line.url, "raw_path": line.url.encode(), "query_string": b"",
            "root_path": "", "headers": [], "http_version": "1.1", "scheme": "http", "app": self,
            "state": {"client": batch.owner, "record": record},
        }  # fmt: skip
        try:
            if line.body.get("stream"):
                raise ApiProblem(400, "stream is true; a batch gives whole answers", "stream")
            await self._routes()(scope, receive, send)
        except Exception as error:
            problem = problem_of(error)
            return problem.status, problem.as_openai()
        return status, json.loads(b"".join(parts))


def _owner(request: Request) -> str:
    return str(request.scope["state"]["client"])


def _lines(raw: bytes, endpoint: str) -> list[BatchLine]:
    """The requests of a file. Raises ApiProblem, which names the line."""
    rows = [(number, row) for number, row in enumerate(raw.split(b"\n"), 1) if row.strip()]
    if not rows:
        raise ApiProblem(400, "the file holds no request; expected a JSON object in each line", "input_file_id")
    if len(rows) > MOST_LINES:
        raise ApiProblem(400, f"the file holds {len(rows)} requests; a batch takes up to {MOST_LINES}", "input_file_id")
    found: list[BatchLine] = []
    seen: set[str] = set()
    for number, row in rows:
        try:
            line = BatchLine.model_validate(strict_json.parse(row))
        except (FormatError, ValidationError) as error:
            what = str(error) if isinstance(error, FormatError) else error.errors()[0]["msg"]
            expected = "expected custom_id, method, url and body"
            raise ApiProblem(400, f"line {number} of the file: {what}; {expected}", "input_file_id") from None
        if line.url != endpoint:
            raise ApiProblem(400, f"line {number} of the file: url is {line.url[:80]!r}; expected {endpoint}",
                             "input_file_id")  # fmt: skip
        if line.custom_id in seen:
            raise ApiProblem(400, f"line {number} of the file: custom_id {line.custom_id[:80]!r} is there twice",
                             "input_file_id")  # fmt: skip
        seen.add(line.custom_id)
        found.append(line)
    return found
