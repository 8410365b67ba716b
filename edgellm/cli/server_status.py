"""How a server that runs is, asked over HTTP: for `edgellm serve --status`."""

from __future__ import annotations

from typing import Any

import click

from edgellm.cli.server_client import ask
from edgellm.cli.terminal import one_line, size_text
from edgellm.errors import EdgellmError


def tell_status(host: str, port: int, key: str | None) -> None:
    """Print it. Raises EdgellmError when no server answers, or it wants another key."""
    for line in _lines(_asked(host, port, key)):
        click.echo(one_line(line))


def _asked(host: str, port: int, key: str | None) -> dict[str, Any]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    found = ask(url, "/status", key)
    if not isinstance(found, dict) or "generated_tokens" not in found:
        raise EdgellmError(f"what answers at {url} is no edgellm: it tells no status")
    return found


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"edgellm {found['version']}, up {_duration(found['uptime_seconds'])}",
        f"answers  {found['answers_running']:g} being written, {found['queue_length']:g} waiting",
        f"tokens   {found['prompt_tokens']:,} read ({found['prompt_tokens_cached']:,} of them from the cache), "
        f"{found['generated_tokens']:,} written",
        f"memory   {size_text(found['memory_used_bytes'])} in use, {size_text(found['memory_available_bytes'])} free",
    ]
    for model in found["models"]:
        use = f"{model['users']} at it" if model["users"] else f"idle for {_duration(model['idle_seconds'])}"
        lines.append(f"model    {model['name']}, {size_text(model['bytes'])}, {use}")
    return lines if found["models"] else [*lines, "model    none is loaded"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
