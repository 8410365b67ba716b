"""How models are named: hf:ORG/REPO/FILE.gguf, the files of a split model, and what a misspelt name may have meant."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass

from edgellm.errors import UsageError

# Every part must be a plain file name; see _is_plain.
_FILE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>.+\.gguf)")
_REPOSITORY = re.compile(r"hf:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w.-]*))?")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_SHARDS = 10_000

# What people write before ORG/REPO, as it stands in a browser or in other programs.
_OTHER_FORMS = re.compile(r"(hf:/*|(https?://)?(www\.)?(huggingface\.co|hf\.co)/|huggingface:/*)+", re.IGNORECASE)
_PAGES = ("resolve", "blob", "raw", "tree")  # ORG/REPO/PAGE/REVISION/FILE


@dataclass(frozen=True)
class HubName:
    """A name of the Hugging Face hub, taken apart; file is empty for a repository."""

    repo: str
    revision: str | None
    file: str = ""


def parse_file_name(name: str) -> HubName:
    """Take hf:ORG/REPO[@REVISION]/[FOLDER/]FILE.gguf apart. Raises UsageError."""
    match = _FILE.fullmatch(name)
    parts = [*match["repo"].split("/"), match["revision"] or "main", *match["file"].split("/")] if match else []
    if match and all(_is_plain(part) for part in parts):
        return HubName(match["repo"], match["revision"], match["file"])
    expected = "expected hf:ORG/REPO/FILE.gguf, or hf:ORG/REPO@REVISION/FOLDER/FILE.gguf"
    if _REPOSITORY.fullmatch(name):
        hint = f"; it names a repository, which can be converted: edgellm convert {name} -o MODEL.gguf"
    else:
        hint = did_you_mean(meant_on_the_hub(name))
    raise UsageError(f"{name!r} does not name a file; {expected}{hint}")


def parse_repository_name(name: str) -> HubName:
    """Take hf:ORG/REPO[@REVISION] apart. Raises UsageError."""
    if match := _REPOSITORY.fullmatch(name):
        return HubName(match["repo"], match["revision"])
    raise UsageError(f"{name!r} does not name a checkpoint; expected hf:ORG/REPO or hf:ORG/REPO@REVISION")


def meant_on_the_hub(text: str) -> str | None:
    """The hf: name of a file that an address or another program's name for it means; None if it is none of these."""
    if not (form := _OTHER_FORMS.match(text)):
        return None
    parts = urllib.parse.unquote(text[form.end() :].partition("?")[0]).replace(":", "/").strip("/").split("/")
    if len(parts) < 3:
        return None
    repo, rest, revision = "/".join(parts[:2]), parts[2:], ""
    if rest[0] in _PAGES and len(rest) > 2:
        revision, rest = f"@{rest[1]}", rest[2:]
    file = "/".join(rest)
    stem = file[: -len(".gguf")] if file.lower().endswith(".gguf") else file
    name = f"hf:{repo}{revision if revision != '@main' else ''}/{stem}.gguf"
    match = _FILE.fullmatch(name)
    return name if match and name != text and all(map(_is_plain, name.removeprefix("hf:").split("/"))) else None


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like a misspelt one; None when none is near."""
    import difflib  # only for a message

    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(text.lower()[:200], by_lower, n=1)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str | None) -> str:
    """The end of a message."""
    return f"; did you mean {name}?" if name else ""


def shard_names(file: str) -> list[str]:
    """Every file of a split model, given one of them; a file that is not split is its only one."""
    match = _SHARD.fullmatch(file)
    count = int(match["count"]) if match else 0
    if not match or not 1 <= int(match["number"]) <= count <= _MOST_SHARDS:
        return [file]
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _is_plain(part: str) -> bool:
    return part.strip(".") != "" and part.isprintable() and not any(c in part for c in '\\:*?"<>|')
