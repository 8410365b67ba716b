"""The ways to ask a model for text: prompts, chats, in the shapes of OpenAI, and from asyncio."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload
from weakref import WeakSet

from edgellm import checks
from edgellm.engine.adapter_set import Adapters, AdapterSet
from edgellm.engine.answer_plan import AnswerPlan, PlannedPrompt, plan_of_chat, plan_of_text
from edgellm.engine.generation import Generation
from edgellm.engine.prompt import (
    chat_params,
    check_biases,
    checked_adapters,
    checked_messages,
    checked_variables,
    sampling_params,
    spelled_out,
    spelled_out_for_chat,
    with_virtual,
)
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.together import DEFAULT_PARALLEL, Job, together
from edgellm.errors import EdgellmError, TemplateError, UsageError
from edgellm.params import SamplingParams
from edgellm.text import ChatTemplate, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.engine.async_generation import AsyncGeneration
    from edgellm.engine.openai import ChatShape
    from edgellm.engine.openai.asking import OpenAIKeywords
    from edgellm.engine.shifting import PromptWithin, Shift
    from edgellm.params import ChatKeywords, ChatParams, SamplingKeywords

AdapterScales: TypeAlias = "Mapping[str, float] | Iterable[str]"


class Answering:
    """What of a `Model` gives answers. The model itself brings what stands here without a value."""

    path: Path
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    recommended_sampling: dict[str, Any]
    n_ctx: int
    n_vocab: int
    _scheduler: Scheduler
    _adapters: Adapters
    _generations: WeakSet[Generation]
    _lock: threading.Lock

    @abstractmethod
    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]: ...

    @abstractmethod
    def _checked(self, name: str, token_ids: Iterable[int]) -> list[int]: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        adapters: AdapterScales | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        n: int,
        adapters: AdapterScales | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> list[Generation]: ...

    @spelled_out
    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        n: int | None = None,
        adapters: AdapterScales | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Generation | list[Generation]:
        """Continue a prompt, a plain text or token ids. The keywords are those of `SamplingParams`, over
        what the model's file recommends.

        n:  give a list of so many different answers. The prompt is computed once, and the seeds are `seed`,
            `seed + 1` and so on.
        adapters:  for this text, in place of those that `set_adapters` named: scales by name, or names; {} for none.

        Raises UsageError for what cannot work, ContextOverflowError when the prompt alone does not fit.
        """
        params = sampling_params(sampling, self.recommended_sampling)
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt, add_special=True, parse_special=True)
        plan = plan_of_text(params, self.tokenizer, self.n_vocab)
        return self._answers(PlannedPrompt(self._checked("prompt", prompt), plan), params, n, adapters)

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        adapters: AdapterScales | None = None,
        **keywords: Unpack[ChatKeywords],
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        n: int,
        adapters: AdapterScales | None = None,
        **keywords: Unpack[ChatKeywords],
    ) -> list[Generation]: ...

    @spelled_out_for_chat
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        n: int | None = None,
        adapters: AdapterScales | None = None,
        **keywords: Unpack[ChatKeywords],
    ) -> Generation | list[Generation]:
        """Answer the last of some messages [{"role": "user", "content": ...}, ...], by the model's chat template.

        template_variables:  what the template is told beside the messages, such as {"enable_thinking": False}.
        The keywords are those of `ChatParams` (tools, thoughts) and of `SamplingParams`; `n` and `adapters` are as for
        `generate`.

        Raises TemplateError when the model has none or its template refuses the messages, UsageError for what cannot
        work, ContextOverflowError when the messages do not fit.
        """
        wishes, params = chat_params(keywords, self.recommended_sampling)
        if self.chat_template is None:
            raise TemplateError(
                f"{self.path.name} is a base model without a chat template; use generate() to continue plain text"
            )
        messages, variables = checked_messages(messages), checked_variables(template_variables)
        prompt, plan = plan_of_chat(
            self.chat_template, messages, variables, wishes, params, self.tokenizer, self.n_vocab
        )
        ids = self.tokenize(prompt, add_special=False, parse_special=True)
        within = self._within(messages, variables, wishes) if params.when_full == "shift" else None
        return self._answers(PlannedPrompt(self._checked("prompt", ids), plan, within), params, n, adapters)

    def _within(self, messages: list[Any], variables: Mapping[str, Any], wishes: ChatParams) -> PromptWithin:
        """Prompts of the same chat without its oldest turns."""
        from edgellm.engine.asking import prompt_of_chat  # seldom needed
        from edgellm.engine.shifting import latest_turns

        template, tokenize = self.chat_template, self.tokenize
        assert template is not None
        return latest_turns(
            messages, lambda some: tokenize(prompt_of_chat(template, some, variables, wishes), parse_special=True)
        )

    def generate_async(
        self,
        prompt: str | Iterable[int],
        *,
        adapters: AdapterScales | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> AsyncGeneration:
        """The same for asyncio: `async for` gives its pieces, `await` all of it. The event loop never waits."""
        from edgellm.engine.async_generation import AsyncGeneration

        return AsyncGeneration(lambda: self.generate(prompt, adapters=adapters, **sampling))

    def chat_async(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        adapters: AdapterScales | None = None,
        **keywords: Unpack[ChatKeywords],
    ) -> AsyncGeneration:
        """`chat` for asyncio: `async for` gives its pieces, `await` all of it. The event loop never waits."""
        from edgellm.engine.async_generation import AsyncGeneration

        return AsyncGeneration(lambda: self.chat(messages, template_variables, adapters=adapters, **keywords))

    @overload
    def openai_chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[False] | None = False,
        **keywords: Unpack[OpenAIKeywords],
    ) -> dict[str, Any]: ...

    @overload
    def openai_chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **keywords: Unpack[OpenAIKeywords],
    ) -> Iterator[dict[str, Any]]: ...

    def openai_chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: bool | None = False,
        **keywords: Unpack[OpenAIKeywords],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """`chat` in the words and shapes of OpenAI: what a request to /v1/chat/completions holds, and what it gives.

        stream:  give an iterator over chunks in place of the whole completion.
        The keywords are those of `OpenAIParams`. Raises what `chat` raises.
        """
        streams = bool(stream) if stream is None else checks.flag("stream", stream)
        generations, shape = self.openai_begun(messages, keywords, streams)
        return shape.chunks(generations) if streams else shape.completion(generations)

    def openai_begun(
        self, messages: Iterable[Mapping[str, Any]], keywords: Mapping[str, Any], streams: bool = False
    ) -> tuple[list[Generation], ChatShape]:
        """The answers that `openai_chat` gives, of which nothing is computed yet, and what puts them into shape."""
        from edgellm.engine.openai import ChatShape, goes_on, openai_params, prepared

        asked = openai_params(keywords)
        if asked.stream_options is not None and not streams:
            raise UsageError("stream_options is given, but stream is not True; set it", parameter="stream_options")
        template = self.chat_template
        can_think = template is not None and template.reasoning is not None
        tells_effort = template is not None and "reasoning_effort" in template.source
        ours, variables = asked.for_chat(can_think, tells_effort)
        found = checked_messages(messages)
        if (wish := goes_on(found, ours.get("continue_final_message"))) is not None:
            ours["continue_final_message"] = wish
        generations = self.chat(prepared(found), variables, n=asked.n or 1, **ours)
        shape = ChatShape(
            self.tokenizer,
            asked.model or self.path.stem,
            has_logprobs=bool(asked.logprobs),
            includes_usage=asked.includes_usage,
        )
        return generations, shape

    def batch(
        self,
        prompts: Iterable[str | Iterable[int] | Iterable[Mapping[str, Any]]],
        *,
        n_parallel: int = DEFAULT_PARALLEL,
        adapters: AdapterScales | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> list[Generation]:
        """Answers to many prompts, in their order, all of them computed; `text` is what each says.

        prompts:     texts or token ids, as `generate` takes them, and lists of messages, as `chat` does.
        n_parallel:  so many are computed at once, which takes little longer than one.

        Raises what `generate` and `chat` do, before anything is computed, and the first error of an answer. What is
        wrong with a prompt is said with its place: `prompts[1]: ...`.
        """
        n_parallel = checks.whole_number("n_parallel", n_parallel, 1)
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
            raise checks.wrong("prompts", prompts, "a list of prompts")
        if "n" in sampling:
            raise UsageError(
                "n is given, and a batch has one answer to each prompt; name a prompt several times", parameter="n"
            )
        generations = [self._one_of_batch(i, prompt, adapters, sampling) for i, prompt in enumerate(prompts)]
        for job in together((Job(None, [generation]) for generation in generations), n_parallel):
            if job.error is not None:
                raise job.error
        return generations

    def _one_of_batch(self, index: int, prompt: Any, adapters: AdapterScales | None, sampling: Any) -> Generation:
        try:
            if not isinstance(prompt, str):
                prompt = list(prompt) if isinstance(prompt, Iterable) else prompt
                if isinstance(prompt, list) and any(isinstance(item, Mapping) for item in prompt):
                    return self.chat(prompt, adapters=adapters, **sampling)
            return self.generate(prompt, adapters=adapters, **sampling)
        except EdgellmError as problem:
            if problem.parameter in sampling:  # wrong for all of them
                raise
            raise type(problem)(f"prompts[{index}]: {problem}", parameter=problem.parameter) from None

    def _answers(
        self, prompt: PlannedPrompt, params: SamplingParams, n: int | None, adapters: AdapterScales | None
    ) -> Generation | list[Generation]:
        check_biases(params, self.n_vocab)
        chosen, plan = self._adapters.chosen(checked_adapters(adapters)), prompt.plan
        ids = with_virtual("prompt", prompt.ids, chosen.n_virtual, self.n_ctx)
        shift = None
        if params.when_full == "shift" or params.n_keep is not None:
            from edgellm.engine.shifting import Shift  # seldom needed

            shift = Shift(params, len(ids), self.n_ctx, chosen.n_virtual, prompt.within)
        if n is None:
            return self._generate(ids, params, chosen, plan, shift)
        first = params.seed
        seeds = [None if first is None else first + i for i in range(checks.whole_number("n", n, 1))]
        generations = [self._generate(ids, replace(params, seed=seed), chosen, plan.copy(), shift) for seed in seeds]
        Generation.together(generations)
        return generations

    def _generate(
        self, ids: list[int], params: SamplingParams, chosen: AdapterSet, plan: AnswerPlan, shift: Shift | None
    ) -> Generation:
        generation = Generation(self._scheduler, self.tokenizer, ids, params, self.n_ctx, chosen, plan, shift)
        with self._lock:
            self._generations.add(generation)
        return generation
