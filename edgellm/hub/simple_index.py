"""Finding one wheel in a Python package index: PEP 503 (HTML pages) and PEP 691 (JSON pages)."""

from __future__ import annotations

import html.parser
import http.client
import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.errors import DownloadError
from edgellm.hub.network import (
    AccessDenied,
    Network,
    NotThere,
    Unavailable,
    host_of,
    with_password_of,
    without_password,
)
from edgellm.hub.pip_config import PipConfig

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_LIMIT = 64 << 20  # bytes; the largest pages of real indexes hold a few MB


@dataclass(frozen=True)
class WheelLink:
    """A wheel that an index offers; sha256 as lower-case hex and size in bytes when the index tells them."""

    filename: str
    url: str
    sha256: str | None = None
    size: int | None = None


def find_wheel(package: str, version: str, config: PipConfig, network: Network) -> WheelLink:
    """The wheel for any platform of this very version, from the first place of the configuration that has it.

    Raises DownloadError with each place's reason, first of places that could not be asked; AccessDenied when one of
    them asked for credentials.
    """
    troubles: list[DownloadError] = []
    lacking: list[str] = []
    for page in _pages(package, config):
        try:
            links = _links(page, network)
        except NotThere as error:
            lacking.append(str(error))
            continue
        except DownloadError as error:
            troubles.append(error)
            continue
        for link in links:
            if _is_wheel_of(link.filename, package, version):
                return link
        lacking.append(f"{without_password(page)} has no wheel of it")
    said = [*(str(trouble) for trouble in troubles)]
    if lacking or not troubles:
        places = ", ".join(dict.fromkeys(lacking)) or "pip is configured for no index"
        said.append(f"{package} {version} not found: {places}")
    raise _kind_of(troubles)("; ".join(dict.fromkeys(said)))


def _kind_of(troubles: list[DownloadError]) -> type[DownloadError]:
    kinds = [type(trouble) for trouble in troubles]
    return next((kind for kind in (AccessDenied, Unavailable) if kind in kinds), DownloadError)


def _pages(package: str, config: PipConfig) -> Iterator[str]:
    """Where the wheel's link may stand: the folders and pages of find-links, then the indexes."""
    for place in config.find_links:
        yield place if "://" in place else Path(os.path.expanduser(place)).absolute().as_uri()
    for index in config.index_urls:
        yield f"{index.rstrip('/')}/{_normalised(package)}/"


def _links(page: str, network: Network) -> list[WheelLink]:
    """Every link of a page; a local folder's links are its files."""
    if page.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
        if folder.is_dir():
            if not (folder / "index.html").is_file():
                return [WheelLink(path.name, path.as_uri()) for path in folder.glob("*.whl")]
            page = (folder / "index.html").as_uri()
    with network.open(page, {"Accept": _ACCEPT}) as response:
        body = _body(response, page)
        kind = response.headers.get_content_type()
        page = with_password_of(page, response.url)
    # A page from the network must not point at files of this machine.
    schemes = ("file", "http", "https") if page.startswith("file:") else ("http", "https")
    try:
        links = _links_of_json(body) if kind.endswith("json") else _links_of_html(body)
        absolute = [replace(link, url=with_password_of(page, urllib.parse.urljoin(page, link.url))) for link in links]
        return [link for link in absolute if urllib.parse.urlsplit(link.url).scheme in schemes]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DownloadError(f"{without_password(page)} is not a page of a package index") from None


def _body(response: Any, page: str) -> bytes:
    """The bytes of a page; raises Unavailable when they end too early."""
    try:
        body: bytes = response.read(_PAGE_LIMIT)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{host_of(page)} broke off its answer: {error or type(error).__name__}") from None
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(body) < min(int(length), _PAGE_LIMIT):
        raise Unavailable(f"{host_of(page)} broke off its answer after {len(body):,} bytes")
    return body


def _links_of_json(body: bytes) -> list[WheelLink]:
    files = json.loads(body)["files"]
    return [_link(file["filename"], file["url"], file["hashes"].get("sha256"), file.get("size")) for file in files]


def _links_of_html(body: bytes) -> list[WheelLink]:
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    links = []
    for href in parser.hrefs:
        url, _, fragment = href.partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        sha256 = urllib.parse.parse_qs(fragment).get("sha256", [None])[0]
        links.append(_link(name, urllib.parse.urljoin(parser.base, url), sha256, None))
    return links


def _link(filename: Any, url: Any, sha256: Any, size: Any) -> WheelLink:
    """A link as a stranger's page has it. Raises ValueError for what is no link."""
    if not isinstance(filename, str) or not isinstance(url, str):
        raise ValueError("a file without a name or address")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError("a sha256 that is none")
    return WheelLink(filename, url, sha256 and sha256.lower(), size if type(size) is int and size > 0 else None)


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)
        elif tag == "base" and href:
            self.base = href


def _is_wheel_of(filename: str, package: str, version: str) -> bool:
    """Whether this is NAME-VERSION-*-none-any.whl; a build number between is allowed."""
    parts = filename.removesuffix(".whl").split("-")
    return (
        filename.endswith("-none-any.whl")
        and len(parts) in (5, 6)
        and _normalised(parts[0]) == _normalised(package)
        and parts[1] == version
    )


def _normalised(name: str) -> str:
    """A package name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
