"""What Ollama's requests take."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from edgellm.engine import Model
from edgellm.server.problems import ApiProblem
from edgellm.server.sampling import Sampling, Strict

# How long Ollama is told to keep a model: a number of seconds, or a text like 5m.
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
CALLED = {
    "max_tokens": "options.num_predict", "n_keep": "options.num_keep", "response_format": "format",
    "template_variables": "think", "reasoning_content": "thinking",
}  # fmt: skip


class Options(Sampling):
    """What Ollama calls options. Those in the second half say how a model is loaded, which this server decides."""

    num_predict: int | None = None
    num_ctx: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None

    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None

    def keywords(self) -> dict[str, Any]:
        found = self.sampling()
        if self.num_predict is not None and self.num_predict >= 0:  # -1 goes on to the end, -2 fills the context
            found["max_tokens"] = self.num_predict
        if self.stop:
            found["stop"] = self.stop
        return found

    def check(self, model: Model) -> None:
        """Raises ApiProblem for a context that the model does not have here."""
        if self.num_ctx is not None and self.num_ctx > model.n_ctx:
            raise ApiProblem(
                400,
                f"options.num_ctx is {self.num_ctx}, and this server gives {model.path.stem} a context of "
                f"{model.n_ctx}; start it with a larger --ctx, or ask for less",
                "options.num_ctx",
            )


def _or(usual: Any) -> BeforeValidator:
    """null stands for what is usual, as Ollama reads it."""
    return BeforeValidator(lambda given: usual if given is None else given)


class Named(Strict):
    """A request about a model, which older clients call its name."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), populate_by_name=True)

    model: str = Field(validation_alias=AliasChoices("model", "name"))
    options: Annotated[Options, _or(Options())] = Options()
    keep_alive: float | str | None = None

    @property
    def idle(self) -> float | None:
        """Seconds for which the model is kept afterwards. Raises ApiProblem for what is no time."""
        given = self.keep_alive
        if given is None or given == "":
            return None
        seconds = 0.0
        if isinstance(given, str):
            text = given.lstrip("-")
            parts = _DURATION.findall(text)
            if re.fullmatch(r"-?\d+", given):
                return _kept(float(given))
            if not parts or "".join(map("".join, parts)) != text:
                raise ApiProblem(400, f"keep_alive is {given[:40]!r}; expected a time such as 5m, or seconds")
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            given = -seconds if given.startswith("-") else seconds
        return _kept(float(given))


def _kept(seconds: float) -> float:
    return seconds if seconds >= 0 else float("inf")


class Asking(Named):
    """What chats and single prompts have in common."""

    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    truncate: bool | None = None
    shift: bool | None = None

    def keywords(self) -> dict[str, Any]:
        """The engine's. Raises ApiProblem."""
        found = self.options.keywords()
        if self.shift:
            found.setdefault("when_full", "shift")
            if self.options.num_keep is not None:
                found.setdefault("n_keep", self.options.num_keep)
        if self.format == "json":
            found["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            found["response_format"] = self.format
        elif self.format:
            raise ApiProblem(400, f'format is {self.format[:40]!r}; expected "json" or a JSON schema')
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        if isinstance(self.think, str):
            if self.think not in ("low", "medium", "high", "max"):
                raise ApiProblem(400, f"think is {self.think[:40]!r}; expected true, false, low, medium or high")
            found["think"] = True
        elif self.think is not None:
            found["think"] = self.think
        return found


class MessageIn(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(Asking):
    """/api/chat"""

    messages: Annotated[list[MessageIn], _or([])] = Field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(Asking):
    """/api/generate"""

    prompt: Annotated[str, _or("")] = ""
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None


class ShowRequest(Named):
    """/api/show"""

    verbose: bool | None = None
    system: str | None = None
    template: str | None = None


class EmbedRequest(Named):
    """/api/embed"""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = Field(default=None, ge=1)


class EmbeddingsRequest(Named):
    """/api/embeddings, as older clients ask"""

    prompt: str
