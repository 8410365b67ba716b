"""What the user's pip is configured for: indexes, certificates, proxy, timeout.

Read the way pip reads it (its documentation, "Configuration"): system, user and environment files, then
PIP_CONFIG_FILE, then PIP_* variables; later ones win. pip itself need not be installed.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError

DEFAULT_INDEX = "https://pypi.org/simple"
DEFAULT_TIMEOUT = 15.0  # seconds; pip's own default

# Sections that `pip download` obeys, weakest first.
_SECTIONS = ("global", "download")


@dataclass(frozen=True)
class PipConfig:
    """The settings that decide from where, and how, a package is fetched."""

    index_urls: tuple[str, ...]  # empty with no-index
    find_links: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    trusted_hosts: frozenset[str] = frozenset()
    timeout: float = DEFAULT_TIMEOUT


def read_pip_config(environ: Mapping[str, str] = os.environ) -> PipConfig:
    """The configuration in force. Raises UsageError naming a file or value that cannot be read."""
    options = _options_of_files(environ) | _options_of_variables(environ)
    index_urls = [options.get("index-url") or DEFAULT_INDEX, *options.get("extra-index-url", "").split()]
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        index_urls = []
    return PipConfig(
        index_urls=tuple(index_urls),
        find_links=tuple(options.get("find-links", "").split()),
        cert=options.get("cert"),
        client_cert=options.get("client-cert"),
        proxy=options.get("proxy"),
        trusted_hosts=frozenset(options.get("trusted-host", "").split()),
        timeout=_seconds(options.get("timeout") or options.get("default-timeout")),
    )


def _options_of_files(environ: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for path in _config_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")  # files that do not exist are skipped
        except (configparser.Error, UnicodeDecodeError) as error:
            line = str(error).splitlines()[0]
            raise UsageError(f"pip's configuration {path} cannot be read: {line}") from None
        for section in _SECTIONS:
            if parser.has_section(section):
                options |= {key.replace("_", "-"): value for key, value in parser.items(section) if value}
    return options


def _options_of_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name[len("PIP_") :].lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_") and value
    }


def _config_files(environ: Mapping[str, str]) -> Iterator[Path]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    if sys.platform == "win32":
        yield Path(environ.get("PROGRAMDATA", "C:/ProgramData")) / "pip" / "pip.ini"
        yield home / "pip" / "pip.ini"
        yield Path(environ.get("APPDATA", home)) / "pip" / "pip.ini"
        yield Path(sys.prefix) / "pip.ini"
    else:
        if sys.platform == "darwin":
            yield Path("/Library/Application Support/pip/pip.conf")
        for folder in reversed(environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)):
            yield Path(folder) / "pip" / "pip.conf"
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        if sys.platform == "darwin":
            yield home / "Library" / "Application Support" / "pip" / "pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
        yield Path(sys.prefix) / "pip.conf"
    if chosen:
        yield Path(chosen)


def _seconds(text: str | None) -> float:
    if text is None:
        return DEFAULT_TIMEOUT
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"pip's timeout is {text!r}; expected a number of seconds") from None
