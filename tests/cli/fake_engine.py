"""A stand-in for the engine that answers at once. As a program it is `edgellm` on top of this engine.

What a message says decides how it is answered; see `FakeModel._pieces`. A token is a word.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgellm.errors import ContextOverflowError, FormatError
from edgellm.params import SamplingParams

ORIGIN = "the file's own (tokenizer.chat_template)"


@dataclass
class FakeStats:
    n_prompt_tokens: int
    n_reused_tokens: int = 1
    n_generated_tokens: int = 0
    n_draft_tokens: int = 0
    n_accepted_tokens: int = 0
    n_shifts: int = 0
    first_token_seconds: float = 0.25
    generate_seconds: float = 1.0
    prompt_tokens_per_second: float = 100.0
    tokens_per_second: float = 50.0


class FakeGeneration:
    def __init__(self, pieces: Iterator[str | float], n_prompt: int, room: int, shifts: bool) -> None:
        self._pieces = pieces
        self.n_prompt_done = n_prompt
        self.text_ids: list[str] = ["prompt"] * n_prompt
        self._room, self._shifts = room, shifts
        self.finish_reason: str | None = None
        self.stats = FakeStats(n_prompt)

    def cancel(self) -> None:
        self.finish_reason = self.finish_reason or "cancelled"

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if self.finish_reason:
                return
            if self.stats.n_generated_tokens == self._room and not self._shifts:
                self.finish_reason = "context"
                self.text_ids.append("last")  # which is chosen, though there is no room to compute it
                return
            if self.stats.n_generated_tokens == self._room:
                self.stats.n_shifts = 1
            if isinstance(piece, float):  # how much of the prompt is read
                self.n_prompt_done = int(piece * self.stats.n_prompt_tokens)
                continue
            self.stats.n_generated_tokens += 1
            self.text_ids.append(piece.strip())
            yield piece
        self.finish_reason = self.finish_reason or "stop"


class FakeModel:
    def __init__(self, path: Path, n_ctx: int | None, n_threads: int | None) -> None:
        self.path = path
        self.n_ctx = self.n_text = n_ctx or 1000
        self.n_threads = n_threads or 2
        self.tokenizer = SimpleNamespace(encode=lambda text, parse_special=False: text.split(), notes=[])
        has_template = "base" not in path.name
        self.chat_template = SimpleNamespace(render=_render, origin=ORIGIN, is_guess=False) if has_template else None
        self.adapters: dict[str, float] = {}
        self.notes: list[str] = []
        self.recommended_sampling: dict[str, Any] = {}
        self.closed = False

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed = True

    def chat(self, messages: list[dict[str, str]], **sampling: Any) -> FakeGeneration:
        return self._generation(_render(messages), messages[-1]["content"], sampling, len(messages))

    def generate(self, prompt: str, **sampling: Any) -> FakeGeneration:
        return self._generation(prompt, prompt, sampling, 0)

    def _generation(self, prompt: str, text: str, sampling: dict[str, Any], n_messages: int) -> FakeGeneration:
        params = SamplingParams(**sampling)
        n_prompt = len(prompt.split())
        if n_prompt >= self.n_ctx:
            raise ContextOverflowError(f"the prompt has {n_prompt} tokens, the context holds {self.n_ctx}")
        pieces = self._pieces(text, prompt, params, n_messages)
        return FakeGeneration(pieces, n_prompt, self.n_ctx - n_prompt, params.when_full == "shift")

    def _pieces(self, text: str, prompt: str, params: SamplingParams, n_messages: int) -> Iterator[str | float]:
        if text.startswith("slow"):
            for number in range(100 if params.when_full == "shift" else 1000):
                yield f"word{number} "
                time.sleep(0.01)
        elif text.startswith("read"):
            for done in range(20):
                yield done / 20
                time.sleep(0.1)
            yield "it is read"
        elif text.startswith("markdown"):
            for piece in re.findall(r".{1,7}|\n", text.partition("\n")[2], re.DOTALL):
                yield piece
                time.sleep(0.005)
        elif text.startswith("escape"):
            yield "red \x1b[31m\x9b\r bell\x07\n\ttab é"
        elif text.startswith("prompt"):
            yield prompt
        elif text.startswith("sampling"):
            yield repr(params)
        elif text.startswith("silence"):
            return
        elif text.startswith("crash"):
            raise RuntimeError("boom")
        else:
            yield from (f"heard {text!r}", f" in {n_messages} messages")


def _render(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"<{m['role']}> {m['content']}" for m in messages)


def load(
    path: Path, n_ctx: int | None = None, n_threads: int | None = None, progress: Any = None, **runtime: Any
) -> FakeModel:
    if not path.read_bytes().startswith(b"GGUF"):
        raise FormatError(f"{path}: not a GGUF file")
    for done in range(4):
        progress(done, 3, f"kernel_{done}")
    return FakeModel(path, n_ctx, n_threads)


if __name__ == "__main__":
    import edgellm
    from edgellm.cli import main

    edgellm.load = load  # type: ignore[attr-defined]
    sys.exit(main())
