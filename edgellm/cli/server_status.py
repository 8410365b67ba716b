"""How a server that runs is, asked over HTTP: for `edgellm serve --status`."""

from __future__ import annotations

import http.client
import json
from typing import Any

import click

from edgellm.cli.terminal import one_line, size_text
from edgellm.errors import EdgellmError

SECONDS = 5.0  # until a server that says nothing is given up


def tell_status(host: str, port: int, key: str | None) -> None:
    """Print it. Raises EdgellmError when no server answers, or it wants another key."""
    for line in _lines(_asked(host, port, key)):
        click.echo(one_line(line))


def _asked(host: str, port: int, key: str | None) -> dict[str, Any]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/status", headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        raw = response.read(1 << 20)
        found = json.loads(raw)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EdgellmError(f"no server answers at {where} ({reason}); edgellm serve starts one") from None
    except ValueError:
        raise EdgellmError(f"what answers at {where} is no edgellm") from None
    finally:
        connection.close()
    if response.status == 401:
        raise EdgellmError(f"the server at {where} wants a key; give it with --api-key")
    if response.status != 200 or not isinstance(found, dict) or "generated_tokens" not in found:
        raise EdgellmError(f"what answers at {where} is no edgellm (status {response.status})")
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
