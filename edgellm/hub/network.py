"""Opening URLs with certificates, proxies and passwords, and saying in a line why that failed."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import netrc
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgellm._version import __version__
from edgellm.errors import DownloadError

T = TypeVar("T")

MOST_WAITS = 3
_SHORT_WAIT = 5  # seconds
_LONGEST_LINE = 300  # characters of what a server says
MACOS_CERTIFICATES = "/etc/ssl/cert.pem"  # those that the system itself trusts


class AccessDenied(DownloadError):
    """The server wants credentials or a certificate that only other programs know how to give."""


class NotThere(DownloadError):
    """The server answers, and does not have it."""


class Unavailable(DownloadError):
    """The server cannot be reached, does not answer, or asks to come again later: in `wait` seconds, if it says."""

    wait: int | None = None


class RangeRefused(DownloadError):
    """The server has no such part of the file."""


_MEANING = {401: AccessDenied, 403: AccessDenied, 404: NotThere, 407: AccessDenied, 410: NotThere, 416: RangeRefused}


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
        opener = self._opener(url)
        try:
            return opener.open(request, timeout=self.timeout)
        except OSError as error:
            raise explain(error, url, self.proxy_of(url)) from None
        except (http.client.HTTPException, ValueError) as error:  # ValueError: no URL at all
            raise DownloadError(f"{host_of(url)} cannot be asked: {error or type(error).__name__}") from None

    def proxy_of(self, url: str) -> str | None:
        """The proxy that a URL is asked through, as it may be shown."""
        parts = urllib.parse.urlsplit(url)
        proxy = self.proxy or urllib.request.getproxies().get(parts.scheme)
        if not proxy or urllib.request.proxy_bypass(parts.netloc):
            return None
        return proxy.partition("://")[2].rpartition("@")[2].rstrip("/") or proxy.rpartition("@")[2]

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else None
        return urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies),
            urllib.request.HTTPSHandler(context=self._ssl_context(url)),
        )

    def _ssl_context(self, url: str) -> ssl.SSLContext:
        cert = self.cert
        parts = urllib.parse.urlsplit(url)
        return _ssl_context(cert, self.client_cert, not self.trusted_hosts.isdisjoint((parts.hostname, parts.netloc)))


@functools.cache  # reading the certificates of a system takes a while
def _ssl_context(cert: str | None, client_cert: str | None, trusts_all: bool) -> ssl.SSLContext:
    where = {"capath" if cert and os.path.isdir(cert) else "cafile": cert}
    with _told_by_name(cert):
        context = ssl.create_default_context(**where)  # type: ignore[arg-type]
    if sys.platform == "darwin" and not context.get_ca_certs():  # a Python from python.org brings none
        with contextlib.suppress(OSError):
            context.load_verify_locations(MACOS_CERTIFICATES)
    if trusts_all:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert:
        with _told_by_name(client_cert):
            context.load_cert_chain(client_cert)
    return context


def explain(error: OSError, url: str, proxy: str | None = None) -> DownloadError:
    """A DownloadError of one line for what the operating system, the server or the proxy said."""
    host = host_of(url)
    if isinstance(error, urllib.error.HTTPError):
        speaker = f"the proxy {proxy}" if proxy and error.code == 407 else host
        said = refusal(speaker, error.code, error.reason, error.headers)
        error.close()
        return said
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    way = f"{host} (through the proxy {proxy})" if proxy else host
    if isinstance(cause, ssl.SSLError):
        why = getattr(cause, "verify_message", "") or cause.reason or cause
        return AccessDenied(f"no trusted connection to {way}: {why}")
    if isinstance(cause, TimeoutError):
        return Unavailable(f"{way} does not answer in time")
    why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    if isinstance(cause, socket.gaierror):
        why = f"its name is not known, or there is no network ({why})"
    return Unavailable(f"{way} cannot be reached: {why}")


def refusal(speaker: str, status: int, reason: str, headers: Any) -> DownloadError:
    """A DownloadError for an answer with an HTTP status of 400 or more."""
    more = f": {message}" if (message := headers.get("X-Error-Message")) else ""  # the Hugging Face hub explains
    line = " ".join(f"{speaker} answers {status} {reason}{more}".split())[:_LONGEST_LINE]
    if status == 429 or status >= 500:
        wait = headers.get("Retry-After") or ""
        later = Unavailable(f"{line}; try again in {wait} seconds" if wait.isdigit() else f"{line}; try again later")
        later.wait = int(wait) if wait.isdigit() else None
        return later
    return _MEANING.get(status, DownloadError)(line)


def waiting_a_little(ask: Callable[[], T]) -> T:
    """What `ask` gives; asked again after the wait that a busy server names, as long as that is short."""
    for _ in range(MOST_WAITS):
        try:
            return ask()
        except Unavailable as busy:  # noqa: PERF203  # it is rare
            if not is_short_wait(busy):
                raise
            time.sleep(busy.wait or 0)
    return ask()


def is_short_wait(busy: Unavailable) -> bool:
    """Whether a server asks for so little patience that nobody need be told."""
    return busy.wait is not None and busy.wait <= _SHORT_WAIT


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


def host_of(url: str) -> str:
    """The server of a URL, as it may be shown."""
    return urllib.parse.urlsplit(without_password(url)).netloc or url


@contextlib.contextmanager
def _told_by_name(certificates: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        raise DownloadError(f"the certificates {certificates}, as configured, cannot be read: {why}") from None
