"""What an answer took."""

from __future__ import annotations

from edgellm.dataclass import dataclass


@dataclass
class GenerationStats:
    """What a generation took. Seconds are wall-clock time.

    n_reused_tokens:    tokens of the prompt that were in the cache already and not computed again.
    n_draft_tokens:     tokens that were drafted and verified along with others (speculation).
    n_accepted_tokens:  those of them that came, and took no pass of their own.
    n_shifts:           how often the context was full and the answer went on without the oldest of what was read.
    n_left_out_tokens:  tokens of prompt and answer that were not read any more at the end.
    """

    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
    n_draft_tokens: int = 0
    n_accepted_tokens: int = 0
    n_shifts: int = 0
    n_left_out_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        computed = self.n_prompt_tokens - self.n_reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which the prompt gave."""
        return (self.n_generated_tokens - 1) / self.generate_seconds if self.generate_seconds else 0.0
