"""What a server that runs says of itself, asked over HTTP: for `edgellm launch` and `edgellm serve --status`."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any
from urllib.parse import SplitResult, urlsplit

from edgellm.errors import EdgellmError, UsageError

SECONDS = 5.0  # until a server that says nothing is given up
MOST_BYTES = 10_000_000  # of its answer


def address_of(url: str) -> str:
    """The URL of a server without what need not be there. Raises UsageError for what is none."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)  # which takes line breaks out
        is_address = url.isprintable() and parts.scheme in ("http", "https") and _is_host(parts)
        is_address = is_address and not (parts.query or parts.fragment)
    except ValueError:  # of a bracket without another, or a port that is no number
        is_address = False
    if not is_address:
        raise UsageError(f"--url {url} is no address of a server; expected something like http://127.0.0.1:8080")
    return url


def _is_host(parts: SplitResult) -> bool:
    """Whether a host is named, perhaps with a port, and no user before it: servers ask for keys."""
    return bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0


def ask(url: str, path: str, key: str | None) -> Any:
    """What the server at a URL of `address_of` answers to GET, from JSON.

    Raises EdgellmError when none answers, or it is no edgellm, or wants another key; UsageError for a key that cannot
    be one.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError("the key has letters that no key has; expected plain ones, as in the file of keys")
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        with closing(kind(parts.hostname or "", parts.port, timeout=SECONDS)) as connection:
            connection.request("GET", parts.path + path, headers={"Authorization": f"Bearer {key}"} if key else {})
            response = connection.getresponse()
            status, raw = response.status, response.read(MOST_BYTES)
    except (UnicodeError, http.client.InvalidURL):
        raise UsageError(f"{url} cannot be the address of a server; expected one like http://127.0.0.1:8080") from None
    except TimeoutError:
        raise EdgellmError(
            f"the server at {url} says nothing for {SECONDS:g} seconds; if it is loading a model, try again later"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise EdgellmError(f"no server answers at {url} ({reason}); edgellm serve starts one") from None
    except http.client.HTTPException:
        raise EdgellmError(f"what answers at {url} is no edgellm: it does not speak HTTP") from None
    if status == 401:
        raise EdgellmError(f"the server at {url} wants a key; give it with --api-key")
    if status != 200:
        raise EdgellmError(f"what answers at {url} is no edgellm (status {status})")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise EdgellmError(f"what answers at {url} is no edgellm: it sends no JSON") from None
