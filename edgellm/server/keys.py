"""Keys: only their hashes are kept, and comparing takes as long for a wrong key as for a right one."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgellm.errors import FileProblem, UsageError

LEAST_CHARACTERS = 8
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64}) +sha256:(?P<digest>[0-9a-f]{64})")


class Keys:
    """Who may ask. Without any key, everybody who reaches the server may.

    digests:  SHA-256 of each key, by the name of who has it.
    """

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    @classmethod
    def of(cls, keys: Iterable[str] = (), file: Path | None = None) -> Keys:
        """Keys as they are, and those of a file. Raises UsageError, FileProblem."""
        digests = read(file) if file is not None else {}
        for number, key in enumerate(keys, 1):
            if len(key) < LEAST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(
                    f"api_key has {len(key)} characters; expected {LEAST_CHARACTERS} letters, digits and signs or more",
                    parameter="api_key",
                )
            digests[f"key-{number}"] = _digest(key)
        return cls(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str | None) -> str | None:
        """The name of who has a key; None for a wrong one. All are compared, whichever is right."""
        given = _digest(key or "")
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def key_in(headers: Mapping[bytes, bytes]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY`, or Anthropic's `x-api-key`."""
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return headers[b"x-api-key"].decode("latin-1").strip() if b"x-api-key" in headers else None


def read(file: Path) -> dict[str, bytes]:
    """Hashes by name: a line `NAME sha256:HEX` for each key. Raises FileProblem."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileProblem(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{file}: it is no text") from None
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise FileProblem(
                f"{file}, line {number}: expected NAME sha256:HEX, as `edgellm serve --new-key` writes it"
            )
        if match["name"] in found:
            raise FileProblem(f"{file}, line {number}: {match['name']} has a key already; give each its own name")
        found[match["name"]] = bytes.fromhex(match["digest"])
    if not found:
        raise FileProblem(f"{file} holds no key; make one with `edgellm serve --new-key NAME --api-keys {file}`")
    return found


def new_line(name: str) -> tuple[str, str]:
    """A new key for somebody, and the line of the file that knows it. Raises UsageError for a name that cannot be."""
    key = f"sk-edge-{secrets.token_urlsafe(32)}"
    line = f"{name} sha256:{_digest(key).hex()}"
    if _LINE.fullmatch(line) is None:
        raise UsageError(f"new_key is {name!r:.80}; expected a name of letters, digits, dots and dashes",
                         parameter="new_key")  # fmt: skip
    return key, line


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
