"""The programs that can be told of a server: where each has its configuration, and what must stand in it.

Settings are given by their place in the file, as a path of keys. A path that ends in ITEM is an item of a list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem
from edgellm.files import user_folder

PROVIDER = "edgellm"
KEY_VARIABLE = "EDGELLM_API_KEY"  # where Zed and Codex look for a key
USUAL_CONTEXT = 8192  # tokens, of a model that is not loaded yet
ITEM = "+"

Settings = dict[tuple[str, ...], Any]


@dataclass(frozen=True)
class Served:
    """A server, as a program is told of it.

    models:  contexts in tokens by name, None where it is not known; the first is the one to begin with.
    """

    url: str
    models: Mapping[str, int | None]
    key: str | None = None

    @property
    def first(self) -> str:
        return next(iter(self.models))

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@dataclass(frozen=True)
class Program:
    """path: of its configuration. settings: what it needs there. then: what a person does next."""

    title: str
    path: Callable[[], Path]
    settings: Callable[[Served], Settings]
    then: Callable[[Served], str]


def _home() -> Path:
    found = user_folder()
    if found is None:
        raise FileProblem("there is no home folder here, in which programs have their configurations; set HOME")
    return found


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config")


def _zed_path() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or _home() / "AppData" / "Roaming") / "Zed" / "settings.json"
    return (_config_home() if sys.platform != "darwin" else _home() / ".config") / "zed" / "settings.json"


def _opencode(served: Served) -> Settings:
    options = {"baseURL": served.v1} | ({"apiKey": served.key} if served.key else {})
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "edgellm (local)",
        "options": options,
        "models": {name: {"name": name} for name in served.models},
    }
    return {
        ("$schema",): "https://opencode.ai/config.json",
        ("provider", PROVIDER): provider,
        ("model",): f"{PROVIDER}/{served.first}",
    }


def _claude(served: Served) -> Settings:
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL")
    models = dict.fromkeys((*names, "ANTHROPIC_DEFAULT_HAIKU_MODEL"), served.first)
    variables = {
        "ANTHROPIC_BASE_URL": served.url,
        "ANTHROPIC_AUTH_TOKEN": served.key or "none",
        "API_TIMEOUT_MS": "3000000",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **models,
    }
    return {("env", name): value for name, value in variables.items()}


def _codex(served: Served) -> Settings:
    provider = {"name": "edgellm (local)", "base_url": served.v1, "wire_api": "responses"}
    if served.key:
        provider["env_key"] = KEY_VARIABLE
    return {
        ("model",): served.first,
        ("model_provider",): PROVIDER,
        ("model_providers", PROVIDER): provider,
    }


def _continue(served: Served) -> Settings:
    found: Settings = {("name",): "Local", ("version",): "0.0.1", ("schema",): "v1"}
    for name in served.models:
        model: dict[str, Any] = {"name": f"{name} (edgellm)", "provider": "openai", "model": name, "apiBase": served.v1}
        model |= {"apiKey": served.key or "none", "roles": ["chat", "edit", "apply"]}
        found["models", ITEM, model["name"]] = model
    return found


def _zed(served: Served) -> Settings:
    models = [
        {"name": name, "display_name": f"{name} (edgellm)", "max_tokens": context or USUAL_CONTEXT}
        for name, context in served.models.items()
    ]
    return {("language_models", "openai_compatible", PROVIDER): {"api_url": served.v1, "available_models": models}}


def _with_key(served: Served, then: str) -> str:
    return f"{then}, with your key in {KEY_VARIABLE}" if served.key else then


PROGRAMS = {
    "opencode": Program(
        "OpenCode",
        lambda: _config_home() / "opencode" / "opencode.json",
        _opencode,
        lambda served: f"opencode begins with {PROVIDER}/{served.first}",
    ),
    "claude": Program(
        "Claude Code",
        lambda: Path(os.environ.get("CLAUDE_CONFIG_DIR") or _home() / ".claude") / "settings.json",
        _claude,
        lambda served: f"claude uses {served.first}",
    ),
    "codex": Program(
        "Codex",
        lambda: Path(os.environ.get("CODEX_HOME") or _home() / ".codex") / "edgellm.config.toml",
        _codex,
        lambda served: _with_key(served, "start it with: codex --profile edgellm"),
    ),
    "continue": Program(
        "Continue",
        lambda: _home() / ".continue" / "config.yaml",
        _continue,
        lambda served: "choose the model in Continue's list",
    ),
    "zed": Program(
        "Zed",
        _zed_path,
        _zed,
        lambda served: (
            f"choose the model in Zed's agent panel; Zed wants {KEY_VARIABLE} to be set, to anything"
            if not served.key
            else _with_key(served, "choose the model in Zed's agent panel")
        ),
    ),
}
