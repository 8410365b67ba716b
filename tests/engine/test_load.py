"""Which file a name means, and that one which is not here is fetched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm import hub
from edgellm.engine.sampling.compiled_groups import sampling_kernels
from edgellm.errors import DownloadError, FileProblem, UsageError
from edgellm.kernels.store import KernelStore
from tests.arch import tiny

SELDOM = ("llguidance", "jsonschema", "pydantic", "mcp", "asyncio", "edgellm.engine.openai", "edgellm.engine.structure",
          "edgellm.engine.asking", "edgellm.agent")  # fmt: skip
CHAT = """
import sys
import edgellm

with edgellm.load(sys.argv[1], n_threads=1) as model:
    answer = model.chat([{"role": "user", "content": "Hi"}], max_tokens=3)
    print(answer.text is not None, *[name for name in sys.argv[2:] if name in sys.modules])
"""


def test_a_plain_chat_imports_nothing_of_what_is_seldom_asked_for(tmp_path: Path) -> None:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    path = checkpoint.save(tmp_path / "chat.gguf")
    command = [sys.executable, "-c", CHAT, str(path), *SELDOM]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["True"]


@pytest.fixture
def home(kernels_at_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_model_that_is_not_here_is_fetched(home: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = [], []

    def pull(name: str, progress: Any = None, notice: Any = None) -> Path:
        asked.append(name)
        progress(5, 10, "fetching")
        place = home / "models" / "fetched.gguf"
        place.parent.mkdir(parents=True)
        return Path(shutil.copy(tiny_path, place))

    monkeypatch.setattr(hub, "pull", pull)
    with edgellm.load("smollm2-135m", n_threads=1, progress=lambda *step: told.append(step)) as model:
        assert model.generate([5], max_tokens=2).text is not None
    assert asked == ["smollm2-135m"] and told[0] == (5, 10, "fetching")
    with edgellm.load("fetched.gguf", n_threads=1):  # what is here is not fetched
        assert asked == ["smollm2-135m"]


def test_a_first_start_compiles_what_samplers_need_as_well(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so meanwhile; the first answer would wait for it in silence."""
    any_start = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(KernelStore, "has_compiled", any_start, raising=False)
    with edgellm.load(tiny_path, n_threads=1) as model:
        assert all(model._runner.store.address(kernel) for kernel in sampling_kernels())


def test_what_cannot_be_fetched(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(*_: Any) -> Path:
        raise DownloadError("no source delivers")

    monkeypatch.setattr(hub, "pull", pull)
    with pytest.raises(DownloadError, match="no source delivers"):
        edgellm.load("smollm2-135m")
    for name, error in (("folder/none.gguf", FileProblem), ("none.gguf", FileProblem), ("gpt-9", UsageError)):
        with pytest.raises(error) as told:
            edgellm.load(name)
        assert not isinstance(told.value, DownloadError)
