"""Opening URLs with certificates, proxies and passwords, and fetching a file so that it can be resumed."""

from __future__ import annotations

import base64
import contextlib
import http.client
import netrc
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm._version import __version__
from edgellm.errors import DownloadError, HashMismatchError
from edgellm.files import sha256_of

Progress = Callable[[int, int, str], None]

ATTEMPTS_WITHOUT_PROGRESS = 3
MACOS_CERTIFICATES = "/etc/ssl/cert.pem"  # those that the system itself trusts
_PAUSE_SECONDS = 0.5
_CHUNK = 1 << 18


class AccessDenied(DownloadError):
    """The server wants credentials or a certificate that only other programs know how to give."""


class RangeRefused(DownloadError):
    """The server has no such part of the file."""


_MEANING = {401: AccessDenied, 403: AccessDenied, 407: AccessDenied, 416: RangeRefused}


@dataclass(frozen=True)
class Network:
    """How to reach servers: seconds to wait for an answer, a file or folder of CA certificates, a proxy."""

    timeout: float = 15.0
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    trusted_hosts: frozenset[str] = field(default_factory=frozenset)

    def open(self, url: str, headers: Mapping[str, str], authorization: str | None = None) -> Any:
        """The response for a GET; raises DownloadError.

        `authorization`, or the password of the URL or of the user's netrc file, goes to this host alone:
        redirects do not carry it on.
        """
        url, password = _split_credentials(url)
        request = urllib.request.Request(url, headers={"User-Agent": f"edgellm/{__version__}", **headers})
        if authorization := authorization or password:
            request.add_unredirected_header("Authorization", authorization)
        try:
            return self._opener(url).open(request, timeout=self.timeout)
        except OSError as error:
            raise explain(error, url) from None
        except (http.client.HTTPException, ValueError) as error:  # ValueError: no URL at all
            raise DownloadError(f"{_host(url)} cannot be asked: {error or type(error).__name__}") from None

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else None
        return urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies),
            urllib.request.HTTPSHandler(context=self._ssl_context(url)),
        )

    def _ssl_context(self, url: str) -> ssl.SSLContext:
        where = {"capath" if self.cert and os.path.isdir(self.cert) else "cafile": self.cert}
        context = ssl.create_default_context(**where)  # type: ignore[arg-type]
        if sys.platform == "darwin" and not context.get_ca_certs():  # a Python from python.org brings none
            with contextlib.suppress(OSError):
                context.load_verify_locations(MACOS_CERTIFICATES)
        parts = urllib.parse.urlsplit(url)
        if parts.hostname in self.trusted_hosts or parts.netloc in self.trusted_hosts:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert:
            context.load_cert_chain(self.client_cert)
        return context


def download(
    url: str,
    target: Path,
    network: Network,
    progress: Progress,
    what: str,
    sha256: str | None = None,
    authorization: str | None = None,
) -> None:
    """Fetch `url` into `target`, going on from `target.partial` where an earlier try stopped.

    A connection that breaks is taken up again as long as bytes keep coming. Raises DownloadError, or
    HashMismatchError when the whole file has another sha256; the target appears only when all is well.
    """
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size_of(partial)
        try:
            _transfer(url, partial, network, progress, what, authorization)
        except ConnectionError as error:
            failures = 0 if _size_of(partial) > before else failures + 1
            if failures == ATTEMPTS_WITHOUT_PROGRESS:
                raise explain(error, url) from None
            time.sleep(_PAUSE_SECONDS * failures)
            continue
        if sha256 is None or (found := sha256_of(partial)) == sha256:
            break
        partial.unlink()
        if before == 0:
            raise HashMismatchError(f"{what}: what arrived has sha256 {found}, expected {sha256}")
    os.replace(partial, target)


def explain(error: OSError, url: str) -> DownloadError:
    """A DownloadError of one line for what the operating system or the server said."""
    if isinstance(error, urllib.error.HTTPError):
        line = f"{_host(url)} answers {error.code} {error.reason}"
        error.close()
        return _MEANING.get(error.code, DownloadError)(line)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLError):
        why = getattr(cause, "verify_message", "") or cause
        return AccessDenied(f"no trusted connection to {_host(url)}: {why}")
    if isinstance(cause, TimeoutError):
        return DownloadError(f"{_host(url)} does not answer in time")
    return DownloadError(f"{_host(url)} cannot be reached: {getattr(cause, 'strerror', None) or cause}")


def _transfer(
    url: str, partial: Path, network: Network, progress: Progress, what: str, authorization: str | None
) -> None:
    """One request that appends to `partial`; raises ConnectionError when it broke before the end."""
    have = _size_of(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = network.open(url, headers, authorization)
    except RangeRefused:  # the partial file is not a piece of what the server has
        partial.unlink()
        raise ConnectionError("the download starts again") from None
    with response:
        resumed = have > 0 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else 0
        progress(have, total, what)
        with open(partial, "ab" if resumed else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                progress(have, total, what)
    if have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the connection broke: {error or type(error).__name__}") from None


def _split_credentials(url: str) -> tuple[str, str | None]:
    """The URL without its user and password, and the header these (or the user's netrc file) make."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" or not parts.hostname:
        return url, None
    user, password = parts.username, parts.password
    bare = without_password(url)
    if user is None:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if entry := netrc.netrc().authenticators(parts.hostname):
                user, password = entry[0], entry[2]
    if user is None:
        return bare, None
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
    return bare, "Basic " + base64.b64encode(pair.encode()).decode()


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def with_password_of(page: str, url: str) -> str:
    """The URL with the user and password of `page` if both are of the same server."""
    ours, theirs = urllib.parse.urlsplit(page), urllib.parse.urlsplit(url)
    credentials, _, host = ours.netloc.rpartition("@")
    if not credentials or (ours.scheme, host) != (theirs.scheme, theirs.netloc):
        return url
    return theirs._replace(netloc=ours.netloc).geturl()


def _host(url: str) -> str:
    return urllib.parse.urlsplit(without_password(url)).netloc or url


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
