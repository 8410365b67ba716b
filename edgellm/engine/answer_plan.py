"""What is known of an answer before it begins: its parts, and what its tokens must follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgellm.params import STRUCTURES, ChatParams, SamplingParams
from edgellm.text.messages import ASSISTANTS, holds_calls

if TYPE_CHECKING:
    from edgellm.engine.answer_form import AnswerForm
    from edgellm.engine.sampling.thought_budget import ThoughtBudget
    from edgellm.engine.shifting import PromptWithin
    from edgellm.engine.structure.constraint import Constraint
    from edgellm.engine.structure.ending import Ending
    from edgellm.text import ChatTemplate, Tokenizer


class AnswerPlan(NamedTuple):
    """An answer of plain text, unless something is said of it.

    form:        the parts it may consist of; None where all of it is what the model says.
    constraint:  the grammar that it follows.
    budget:      how long a thought may be.
    is_json:     all of the answer is JSON, which is brought to its end when there is little room left.
    shows:       control tokens that are shown to who tells its parts apart.
    """

    form: AnswerForm | None = None
    constraint: Constraint | None = None
    budget: ThoughtBudget | None = None
    is_json: bool = False
    shows: Collection[int] = ()

    def rules_for(
        self, tokenizer: Tokenizer, n_prompt: int, n_ctx: int, params: SamplingParams
    ) -> list[Constraint | ThoughtBudget | Ending]:
        """The steps that come before all others, for an answer to a prompt of so many tokens."""
        rules: list[Constraint | ThoughtBudget | Ending] = []
        if self.constraint is not None:
            rules.append(self.constraint)
        if self.budget is not None:
            rules.append(self.budget)
        if self.is_json:
            from edgellm.engine.structure.ending import Ending

            limits = [] if params.when_full == "shift" else [n_ctx - n_prompt]
            limits += [] if params.max_tokens is None else [params.max_tokens]
            if limits:
                rules.append(Ending(tokenizer, min(limits)))
        return rules

    def copy(self) -> AnswerPlan:
        """The same for another answer to the same prompt."""
        return self._replace(
            constraint=self.constraint.copy() if self.constraint else None,
            budget=self.budget.copy() if self.budget else None,
        )


PLAIN_TEXT = AnswerPlan()


class PlannedPrompt(NamedTuple):
    """The tokens of a prompt, and what its answer is to be like.

    within:  shorter prompts, for an answer that outgrows the context.
    """

    ids: list[int]
    plan: AnswerPlan = PLAIN_TEXT
    within: PromptWithin | None = None


def plan_of_text(params: SamplingParams, tokenizer: Tokenizer, n_vocab: int) -> AnswerPlan:
    """For an answer without a template. Raises UsageError for a structure that cannot be followed."""
    if not _has_structure(params):
        return PLAIN_TEXT
    from edgellm.engine import asking  # seldom needed

    return asking.plan_of_text(params, tokenizer, n_vocab)


def plan_of_chat(
    template: ChatTemplate,
    messages: list[Any],
    variables: Mapping[str, Any],
    wishes: ChatParams,
    params: SamplingParams,
    tokenizer: Tokenizer,
    n_vocab: int,
) -> tuple[str, AnswerPlan]:
    """The prompt of a chat, and what its answer is to be like. Raises UsageError, TemplateError."""
    asks = any(wish is not None for wish in vars(wishes).values())
    asks = asks or _has_structure(params) or template.reasoning is not None or holds_calls(messages)
    if not asks and not _ends_with_answer(messages):
        return template.render(messages, add_generation_prompt=True, **variables), PLAIN_TEXT
    from edgellm.engine import asking

    return asking.plan_of_chat(template, messages, variables, wishes, params, tokenizer, n_vocab)


def _ends_with_answer(messages: list[Any]) -> bool:
    """Whether the last message may be one to go on from."""
    last = messages[-1] if messages else None
    return not isinstance(last, Mapping) or last.get("role") in ASSISTANTS


def _has_structure(params: SamplingParams) -> bool:
    return any(getattr(params, name) is not None for name in STRUCTURES)
