"""What has happened, in numbers, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgellm.engine import GenerationStats

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)  # seconds


@dataclass
class Histogram:
    """How many values were at most so much."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        n = 0
        for bound, count in zip(BUCKETS, self.counts, strict=True):
            n += count
            yield f'{name}_bucket{{le="{"+Inf" if bound == math.inf else bound}"}} {n}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {n}"


class Metrics:
    """Counted in the event loop only."""

    def __init__(self) -> None:
        self.n_open = 0  # requests that are being answered
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self.n_cancelled = 0
        self.n_prompt_tokens = 0
        self.n_reused_tokens = 0
        self.n_generated_tokens = 0
        self.first_token = Histogram()
        self.answer = Histogram()
        self.waiting = Histogram()

    def count_request(self, route: str, status: int) -> None:
        self.requests[route, status] += 1

    def count_answer(self, stats: GenerationStats, is_cancelled: bool) -> None:
        self.n_prompt_tokens += stats.n_prompt_tokens
        self.n_reused_tokens += stats.n_reused_tokens
        self.n_generated_tokens += stats.n_generated_tokens
        self.n_cancelled += is_cancelled

    def text(self, now: dict[str, float]) -> str:
        """now: gauges by name, such as the length of the queue."""
        return "".join(f"{line}\n" for line in self._lines(now))

    def _lines(self, now: dict[str, float]) -> Iterator[str]:
        yield "# HELP edgellm_requests_total Requests by route and status."
        yield "# TYPE edgellm_requests_total counter"
        for (route, status), n in sorted(self.requests.items()):
            yield f'edgellm_requests_total{{route="{route}",status="{status}"}} {n}'
        for name, value, text in (
            ("prompt_tokens", self.n_prompt_tokens, "Tokens of prompts."),
            ("prompt_tokens_cached", self.n_reused_tokens, "Tokens of prompts that were in the cache already."),
            ("generated_tokens", self.n_generated_tokens, "Tokens of answers."),
            ("answers_cancelled", self.n_cancelled, "Answers that nobody waited for to the end."),
        ):
            yield f"# HELP edgellm_{name}_total {text}"
            yield f"# TYPE edgellm_{name}_total counter"
            yield f"edgellm_{name}_total {value}"
        for name, histogram, text in (
            ("time_to_first_token_seconds", self.first_token, "From a request's arrival to its first text."),
            ("answer_seconds", self.answer, "From a request's arrival to the end of its answer."),
            ("queue_seconds", self.waiting, "That requests waited for their turn."),
        ):
            yield f"# HELP edgellm_{name} {text}"
            yield f"# TYPE edgellm_{name} histogram"
            yield from histogram.lines(f"edgellm_{name}")
        for name, number in now.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            yield f"# TYPE edgellm_{name} {kind}"
            yield f"edgellm_{name} {number:g}"
