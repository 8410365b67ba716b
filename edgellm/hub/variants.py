"""The models of a repository: which GGUF files belong together, what type each has, and which one a person means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from edgellm.errors import DownloadError, UsageError, size_text
from edgellm.hub.names import HubName, did_you_mean, nearest, shard_names

# A type as file names spell it: Q4_K_M, IQ4_XS, BF16, MXFP4, with UD- in front where layers have others.
_TYPE = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
# What lies beside models: the eyes of those that see, importance matrices, drafts of vocabularies.
_BESIDE = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)
_CANNOT = re.compile(r"(UD-)?(IQ[123]|TQ|NVFP4|Q4_0_[48]_[48])")  # types that edgellm does not compute with

# What is taken where a name says no type: small and good first, then what is near to it.
PREFERRED = ("Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q8_0", "MXFP4",
             "Q6_K", "F16", "BF16")  # fmt: skip
_MOST_LISTED = 24


class NoSuchVariant(DownloadError):
    """A repository has no file of the wanted type, or several."""


class Variant(NamedTuple):
    """A model of a repository: its first file with its folder, the bytes of all its files (0: not known), its type."""

    file: str
    n_bytes: int
    type: str

    @property
    def runs(self) -> bool:
        return not _CANNOT.match(self.type)

    def __str__(self) -> str:
        cannot = "" if self.runs else "which edgellm cannot run"
        said = [self.type, size_text(self.n_bytes) if self.n_bytes else "", cannot]
        return f"{self.file} ({', '.join(filter(None, said))})" if any(said) else self.file


def type_of(file: str) -> str:
    """The type that a file's name, or else its folder's, says, in capitals; empty if none does."""
    for part in reversed(file.split("/")):
        if found := _TYPE.findall(part.removesuffix(".gguf")):
            return str(found[-1]).upper().replace("FP16", "F16").replace("FP32", "F32")
    return ""


def variants_of(sizes: Mapping[str, int | None]) -> list[Variant]:
    """The models among the files of a repository, by name. sizes: bytes by the files' names, None if not known."""
    found = []
    for file, size in sorted(sizes.items()):
        folder, slash, name = file.rpartition("/")
        if not name.lower().endswith(".gguf") or _BESIDE.search(name):
            continue
        shards = [f"{folder}{slash}{shard}" for shard in shard_names(name)]
        if file == shards[0]:
            known = [sizes.get(shard) for shard in shards]
            found.append(Variant(file, 0 if None in known else sum(filter(None, known)) or size or 0, type_of(file)))
    return found


def choose(name: HubName, variants: list[Variant]) -> Variant:
    """The one that a name means: of the type it says, or else the first of PREFERRED that is there.

    Raises NoSuchVariant, which lists what there is, when there is none or more than one; UsageError for a type that
    edgellm cannot run.
    """
    if not variants:
        raise NoSuchVariant(f"{name.repo} holds no GGUF file")
    if name.type:
        wanted = name.type.upper()
        fitting = [one for one in variants if one.type == wanted] or [
            one for one in variants if re.search(rf"(?<![A-Z0-9]){re.escape(wanted)}(?![A-Z0-9_])", one.file.upper())
        ]
        if not fitting:
            near = nearest(wanted, [one.type for one in variants if one.type])
            meant = did_you_mean(f"hf:{name.repo}:{near}" if near else None)
            raise NoSuchVariant(f"{name.repo} has no {name.type}{meant or ';'} it holds {listed(variants)}")
    elif len(variants) == 1:
        fitting = variants
    else:
        types = {one.type for one in variants}
        best = next((wanted for wanted in PREFERRED if wanted in types), None)
        fitting = [one for one in variants if one.type == best] if best else variants
    if len(fitting) > 1:
        which = f"say which: hf:{name.repo}/FILE.gguf"
        raise NoSuchVariant(f"{name} names {len(fitting)} models: {listed(fitting)}; {which}")
    if not fitting[0].runs:
        others = [one for one in variants if one.runs]
        hint = f"it also holds {listed(others)}" if others else "it holds no other"
        raise UsageError(f"{fitting[0].file} is of a type that edgellm cannot run; {hint}")
    return fitting[0]


def listed(variants: Iterable[Variant]) -> str:
    """Models in a line, the smallest first."""
    ordered = sorted(variants, key=lambda one: one.n_bytes)
    more = f" and {len(ordered) - _MOST_LISTED} more" if len(ordered) > _MOST_LISTED else ""
    return ", ".join(map(str, ordered[:_MOST_LISTED])) + more
