"""What the shell offers for the name of a model."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_models(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The models of the catalogue and of this machine that begin so; where there is none, files."""
    from edgellm.hub import catalog
    from edgellm.hub.inventory import places
    from edgellm.hub.others import models_of_others
    from edgellm.hub.store import name_of

    found = {name: model.title for name, model in catalog().items()}
    for place in places():
        found.setdefault(name_of(place) or place.name, "on this machine")
    for other in models_of_others():
        found.setdefault(other.name, f"of {other.owner}")
    named = [CompletionItem(name, help=about) for name, about in found.items() if name.startswith(begun)]
    return named or [CompletionItem(begun, type="file")]
