"""What is settled of an answer before it begins: its parts, and what its tokens must follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.engine.answer_form import AnswerForm
    from edgellm.engine.sampling.thought_budget import ThoughtBudget
    from edgellm.engine.structure.constraint import Constraint


@dataclass(frozen=True)
class AnswerPlan:
    """An answer of plain text, unless something is said of it.

    form:        the parts it may consist of; None where all of it is what the model says.
    constraint:  the grammar that it follows.
    budget:      how long a thought may be.
    shows:       control tokens that are shown to who tells its parts apart.
    """

    form: AnswerForm | None = None
    constraint: Constraint | None = None
    budget: ThoughtBudget | None = None
    shows: Collection[int] = ()

    @property
    def rules(self) -> list[Constraint | ThoughtBudget]:
        """Steps that come before all others."""
        return [rule for rule in (self.constraint, self.budget) if rule is not None]

    def copy(self) -> AnswerPlan:
        """The same for another answer to the same prompt."""
        return replace(
            self,
            constraint=self.constraint.copy() if self.constraint else None,
            budget=self.budget.copy() if self.budget else None,
        )
