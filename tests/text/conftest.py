"""Tokenizers alone, as in a process that runs no model: short and medium texts are for Python, whatever ran before."""

from __future__ import annotations

import pytest

from edgellm.text.compiled import turn


@pytest.fixture(autouse=True)
def _no_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_loads_kernels", lambda: False)
