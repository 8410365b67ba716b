"""Choosing a model where none is named: what is here, what could be fetched, and what fits this machine."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import hub
from edgellm.cli.progress import Progress
from edgellm.cli.terminal import columns, one_line, remark, size_text, tell
from edgellm.errors import EdgellmError
from edgellm.hub.catalog import EMBEDDING
from edgellm.machine import available_memory, total_memory
from edgellm.params import DEFAULT_CONTEXT_LIMIT, DEFAULT_MODEL

MOST_FETCHED = 5  # models of the catalogue that are shown to choose from
_PROGRAM_BYTES = 150 << 20  # Python, the kernels, and buffers
_CACHE_NUMBER_BYTES = 2


@dataclass(frozen=True)
class Offer:
    """A model that could be chosen.

    memory: bytes with a full context, about. is_here: it need not be fetched. fault: why it cannot be run.
    """

    name: str
    n_bytes: int
    memory: int
    is_here: bool
    about: str
    fault: str = ""

    @property
    def fits(self) -> bool:
        return not self.fault and self.memory <= available_memory()

    def lines(self, number: int, width: int) -> str:
        where = "here" if self.is_here else "to be fetched"
        if self.fault:
            verdict = f"it cannot be run: {self.fault}"
        elif self.fits:
            verdict = "fits"
        elif self.memory <= total_memory():
            verdict = f"more than the {size_text(available_memory())} that are free now"
        else:
            verdict = f"too large for this machine, which has {size_text(total_memory())}"
        need = "" if self.fault else f"takes about {size_text(self.memory)} of memory: "
        text = f"{size_text(self.n_bytes)}, {where}; {need}{verdict}."
        wrap = textwrap.TextWrapper(width - 1, initial_indent=" " * 5, subsequent_indent=" " * 5)
        return "\n".join([f"{number:3}  {self.name}", *wrap.wrap(one_line(f"{text} {self.about}"))])


def choose_model() -> str:
    """Show the models, and ask. Raises KeyboardInterrupt when the person leaves."""
    found, n_more = _shortened(offers())
    usual = next((number for number, offer in enumerate(found, 1) if offer.fits), 1)
    remark("no model named; these are known here (edgellm run NAME takes one at once):")
    tell("\n".join(offer.lines(number, columns()) for number, offer in enumerate(found, 1)))
    if n_more:
        tell(f"edgellm list shows {n_more} more of the catalogue; their names can be typed too.")
    return _asked([offer.name for offer in found], usual, also=hub.catalog())


def choose_of(name: str, names: list[str]) -> str:
    """Ask which of several models a name means. Raises KeyboardInterrupt when the person leaves."""
    remark(f"{name} names {len(names)} models:")
    tell("\n".join(f"{number:3}  {one}" for number, one in enumerate(names, 1)))
    return _asked(names, 1)


def _shortened(found: list[Offer]) -> tuple[list[Offer], int]:
    """What is here, and the first few of what could be fetched; and how many of these are left out."""
    fetched = [offer for offer in found if not offer.is_here]
    return [offer for offer in found if offer.is_here or offer in fetched[:MOST_FETCHED]], len(fetched[MOST_FETCHED:])


def _asked(names: list[str], usual: int, also: Container[str] = ()) -> str:
    while True:
        try:
            typed = input(f"Which one? [{usual}] ").strip()
        except (EOFError, UnicodeError):
            raise KeyboardInterrupt from None
        if not typed:
            return names[usual - 1]
        if typed.isdecimal() and 1 <= int(typed) <= len(names):
            return names[int(typed) - 1]
        if typed in names or typed in also:
            return typed
        remark(f"{typed} is not one of them; expected a number from 1 to {len(names)}, or Ctrl-C to leave")


def offers() -> list[Offer]:
    """The models that are here, then those of the catalogue; what fits first, and what cannot be run last."""
    catalogued = hub.catalog()
    with Progress(quiet=True) as progress:
        present = [model for model in hub.present(progress) if model.state == "installed" and not model.is_checkpoint]
    here = {model.name: model for model in present}
    found = []
    for name, installed in here.items():
        about = catalogued[name].description if name in catalogued else installed.title
        about = f"{about} It is {installed.owner}'s.".strip() if installed.owner else about
        memory, kind, fault = _looked_into(installed.path, installed.n_bytes)
        found.append(Offer(name, installed.n_bytes, memory, True, about or kind, fault))
    for name, model in catalogued.items():
        if name not in here and model.kind != EMBEDDING:
            about = f"{model.description} Licence: {model.license}."
            found.append(Offer(name, model.n_bytes, model.memory, False, about))
    return sorted(
        found, key=lambda offer: (bool(offer.fault), not offer.is_here, not offer.fits, offer.name != DEFAULT_MODEL)
    )


def _looked_into(path: Path, n_bytes: int) -> tuple[int, str, str]:
    """The memory that a model takes with a full context, what kind it is, and what is wrong with it, in words."""
    from edgellm.arch import architecture_of
    from edgellm.formats.gguf import GGUFFile

    try:
        with GGUFFile.open(path) as file:
            config = architecture_of(file.metadata).configure(file.metadata)
            kind = "Chat model." if "tokenizer.chat_template" in file.metadata else "Base model: it continues text."
            return round(_PROGRAM_BYTES + n_bytes + sum(_cache_bytes(config))), kind, ""
    except EdgellmError as problem:
        return round(_PROGRAM_BYTES + n_bytes), "", str(problem)


def _cache_bytes(config: Any) -> Iterator[int]:
    """Of keys and values of each layer that has some."""
    n_tokens = min(config.n_ctx_train, DEFAULT_CONTEXT_LIMIT)
    n_recurrent = sum(config.recurrent.layers) if config.recurrent is not None else 0
    for _ in range(config.n_layers - n_recurrent):
        yield 2 * n_tokens * config.n_kv_heads * config.head_dim * _CACHE_NUMBER_BYTES
