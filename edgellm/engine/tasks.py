"""What a model that makes vectors was trained to find before a text, by the task that the vector is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.errors import FormatError, UsageError

KEY = "edgellm.embedding.prompts."  # and the name of a task
DEFAULT_KEY = "edgellm.embedding.default_prompt"  # the name of the task that texts have which ask for no other
# Of families that always have the same, for files that do not say them.
_NOMIC = {
    "search_query": "search_query: ", "search_document": "search_document: ", "classification": "classification: ",
    "clustering": "clustering: ",
}  # fmt: skip
_GEMMA = {
    "query": "task: search result | query: ", "document": "title: none | text: ",
    "classification": "task: classification | query: ", "clustering": "task: clustering | query: ",
    "similarity": "task: sentence similarity | query: ", "question_answering": "task: question answering | query: ",
    "fact_checking": "task: fact checking | query: ", "code_retrieval": "task: code retrieval | query: ",
}  # fmt: skip
OF_FAMILY: Mapping[str, Mapping[str, str]] = {
    "nomic-bert": {**_NOMIC, "query": _NOMIC["search_query"], "document": _NOMIC["search_document"]},
    "gemma-embedding": _GEMMA,
}
# Names that people try for the two sides of a search, where a model has one of the others.
_SAME = (("query", "search_query", "Retrieval-query"), ("document", "passage", "search_document", "Retrieval-document"))


class Tasks:
    """Prompts by the names of tasks, as a file has them. Raises FormatError for prompts that are no texts."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        own = {key.removeprefix(KEY): text for key, text in metadata.items() if key.startswith(KEY)}
        if wrong := [name for name, text in own.items() if not isinstance(text, str)]:
            raise FormatError(f"{KEY}{wrong[0]} is {own[wrong[0]]!r:.60}; expected a text")
        self.prompts: dict[str, str] = {**OF_FAMILY.get(str(metadata.get("general.architecture")), {}), **own}
        default = metadata.get(DEFAULT_KEY)
        if default is not None and default not in self.prompts:
            raise FormatError(f"{DEFAULT_KEY} is {default!r:.60}; expected one of {', '.join(self.prompts) or 'none'}")
        self.default: str | None = default

    def prompt(self, task: str | None) -> str:
        """What stands before texts of a task. Raises UsageError for one that the model does not have."""
        name = self.default if task is None else task
        if name is None:
            return ""
        for names in ((name,), *(same for same in _SAME if name in same)):
            for known in names:
                if known in self.prompts:
                    return self.prompts[known]
        known = f"it knows {', '.join(self.prompts)}" if self.prompts else "it knows none; leave task out"
        raise UsageError(f"task is {name!r:.60}, and the model has no prompt for it: {known}, or give prompt",
                         parameter="task")  # fmt: skip

    def side(self, name: str) -> str:
        """The prompt of one side of a search, "query" or "document"; none where the model has none."""
        try:
            return self.prompt(name)
        except UsageError:
            return ""
