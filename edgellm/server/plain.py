"""What belongs to no interface: how the server is, its numbers, and the files of its page."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from edgellm.server.problems import ApiProblem
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer

# What a file of the page is, by the end of its name; nothing else is served.
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}
# A page may load and ask nothing but this server, runs no script that is not a file of it, and stands in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


async def health(server: Server, request: Request) -> Response:
    return JsonAnswer({"status": "ok"})


async def metrics(server: Server, request: Request) -> Response:
    text = server.metrics.text(server.gauges())
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def status(server: Server, request: Request) -> Response:
    return JsonAnswer(server.status())


class Page:
    """The files of `edgellm/server/page`, read once: no path of a request is ever opened."""

    def __init__(self) -> None:
        folder = Path(__file__).with_name("page")
        self._files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in KINDS
        }

    async def index(self, server: Server, request: Request) -> Response:
        return self._file("index.html")

    async def file(self, server: Server, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise ApiProblem(404, "there is no such page; docs/server.md tells what this server answers")
        media_type = KINDS[PurePosixPath(name).suffix]
        return Response(self._files[name], headers={**PAGE_HEADERS, "Content-Type": media_type})
