from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `server` is not installed")
pytest.importorskip("uvicorn", reason="the extra `server` is not installed")

from tests.arch import tiny

from .running import Running, running

# Says the role and the text of each message, as ChatML does, in the characters of the tiny vocabulary.
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers that has a chat template."""
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATE
    return checkpoint.save(tmp_path_factory.mktemp("chat") / "tiny.gguf")


@pytest.fixture(scope="package")
def smol(smollm2: Path) -> Iterator[Running]:
    """A server of SmolLM2, for all tests of this folder that need a model which says something."""
    with running({"smollm2-135m": smollm2}) as server:
        yield server


@pytest.fixture(scope="package")
def small(tiny_chat: Path) -> Iterator[Running]:
    """A server of a tiny random model."""
    with running({"tiny": tiny_chat}) as server:
        yield server
