"""What the answers of chats and text completions have in common."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from edgellm.engine import Generation
from edgellm.engine.openai import usage_of
from edgellm.engine.openai.shapes import shifts_of
from edgellm.server.server import Job


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(16)}"


def head(job: Job, kind: str, name: str) -> dict[str, Any]:
    """What every answer and every part of one begins with."""
    return {"id": new_id(kind), "object": name, "created": job.created, "model": job.loaded.name}


def usage(generations: Sequence[Generation], n_prompts: int = 1) -> dict[str, Any]:
    """Tokens of all answers; a prompt that has several of them counts once."""
    each = len(generations) // n_prompts
    found = [usage_of(generations[first : first + each]) for first in range(0, len(generations), each)]
    total = {name: sum(one[name] for one in found) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    n_cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in found)
    return {**total, "prompt_tokens_details": {"cached_tokens": n_cached}, **shifts_of(generations)}


def timings(generation: Generation) -> dict[str, Any]:
    """How fast it was, in the words of llama.cpp."""
    stats = generation.stats
    return {
        "cache_n": stats.n_reused_tokens,
        "prompt_n": stats.n_prompt_tokens - stats.n_reused_tokens,
        "prompt_ms": round(1000 * stats.prompt_seconds, 3),
        "prompt_per_second": round(stats.prompt_tokens_per_second, 3),
        "predicted_n": stats.n_generated_tokens,
        "predicted_ms": round(1000 * stats.generate_seconds, 3),
        "predicted_per_second": round(max(stats.tokens_per_second, 0), 3),
    }


def prompt_progress(generation: Generation, n_done: int) -> dict[str, int]:
    """How much of a prompt is there, as llama.cpp tells it."""
    return {"total": generation.stats.n_prompt_tokens, "processed": n_done}
