"""/v1/files: what batches read and write. Each is a file without a name on the disk, gone when the server ends."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from dataclasses import dataclass, field
from time import time
from typing import IO, Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from edgellm.server.bodies import within
from edgellm.server.kept import Kept
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer

PURPOSES = ("batch", "user_data")
TIMES_UPLOAD = 10  # all files together may be so many times as large as one
PIECE = 1 << 20


@dataclass
class KeptFile:
    """A file of somebody."""

    id: str
    name: str
    purpose: str
    n_bytes: int
    data: IO[bytes]
    created: int = field(default_factory=lambda: int(time()))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> bytes:
        with self.lock:
            self.data.seek(0)
            return self.data.read()

    def described(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class Files:
    """All that are kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.kept: Kept[KeptFile] = Kept("file", "file-", 10_000)

    def add(self, owner: str, name: str, purpose: str, data: IO[bytes], n_bytes: int) -> KeptFile:
        """Raises ApiProblem when there is no room for more."""
        most = TIMES_UPLOAD * self._server.config.upload_bytes
        if sum(file.n_bytes for file in self.kept.all()) + n_bytes > most:
            data.close()
            raise ApiProblem(413, f"files may take {most} bytes together; delete some first")
        file = KeptFile(self.kept.new_name(), name, purpose, n_bytes, data)
        self.kept.put(file.id, owner, file)
        return file

    async def upload(self, server: Server, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiProblem(400, "expected multipart/form-data with a file and its purpose")
        config = server.config
        stream = within(request, config.upload_bytes, max(config.body_timeout, config.timeout))
        try:
            form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=10).parse()
        except MultiPartException as error:
            raise ApiProblem(400, f"the form cannot be read: {error.message}") from None
        except (ValueError, KeyError):
            raise ApiProblem(400, "the form cannot be read: it names no boundary") from None
        try:
            found, purpose = form.get("file"), form.get("purpose")
            if not isinstance(found, UploadFile):
                raise ApiProblem(400, "file is missing; expected a file", "file")
            if purpose not in PURPOSES:
                raise ApiProblem(400, f"purpose is {str(purpose)[:60]!r}; expected one of {', '.join(PURPOSES)}",
                                 "purpose")  # fmt: skip
            data, n_bytes = await asyncio.to_thread(_copied, found.file)
            name = (found.filename or "file").replace("\\", "/").rpartition("/")[2][:200]
        finally:
            await form.close()
        return JsonAnswer(self.add(_owner(request), name, str(purpose), data, n_bytes).described())

    async def index(self, server: Server, request: Request) -> Response:
        wanted = request.query_params.get("purpose")
        data = [file.described() for file in self.kept.of(_owner(request)) if wanted in (None, file.purpose)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JsonAnswer({"object": "list", "data": data, "has_more": False, **ends})

    async def show(self, server: Server, request: Request) -> Response:
        return JsonAnswer(self.kept.get(request.path_params["id"], _owner(request)).described())

    async def content(self, server: Server, request: Request) -> Response:
        file = self.kept.get(request.path_params["id"], _owner(request))
        headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
        return Response(await asyncio.to_thread(file.read), media_type="application/octet-stream", headers=headers)

    async def delete(self, server: Server, request: Request) -> Response:
        file = self.kept.drop(request.path_params["id"], _owner(request))
        with file.lock:
            file.data.close()
        return JsonAnswer({"id": file.id, "object": "file", "deleted": True})

    def close(self) -> None:
        for file in self.kept.all():
            file.data.close()


def _owner(request: Request) -> str:
    return str(request.scope["state"]["client"])


def _copied(source: IO[bytes]) -> tuple[IO[bytes], int]:
    """The rest of a file in one of our own, which has no name."""
    own = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the server
    source.seek(0)
    while piece := source.read(PIECE):
        own.write(piece)
    return own, own.tell()
