"""How models are named: the names of the Hugging Face hub in every spelling, split files, near misses."""

from __future__ import annotations

import contextlib
import re
import urllib.parse
from collections.abc import Iterable
from typing import NamedTuple

from edgellm.errors import UsageError

# Every part must be a plain file name; see _is_plain.
_REPOSITORY = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w.-]*))?(?::(?P<type>[\w.-]+))?")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_SHARDS = 10_000

# What people write before ORG/REPO, as it stands in a browser or in other programs.
_FORMS = re.compile(r"(hf:/*|(https?://)?(www\.)?(huggingface\.co|hf\.co)/|huggingface:/*)+", re.IGNORECASE)
_PAGES = ("resolve", "blob", "raw", "tree")  # ORG/REPO/PAGE/REVISION/FILE
_OF_CHECKPOINTS = (".safetensors", ".bin", ".pt", ".pth", ".json")  # files that are no model by themselves
_ANY_TYPE = "latest"  # what other programs call the type that they would choose

FORMS = "hf:ORG/REPO/FILE.gguf, hf:ORG/REPO or hf:ORG/REPO:Q4_K_M"


class HubName(NamedTuple):
    """A name of the Hugging Face hub, taken apart.

    file:  with its folders; empty for a repository. type: the quantization that is wanted of one; empty for any.
    """

    repo: str
    revision: str | None
    file: str = ""
    type: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f"/{self.file}" if self.file else f":{self.type}" if self.type else "")


def parse_hub_name(text: str) -> HubName | None:
    """Take a name of the hub apart, however it is spelt; None for what does not begin as one.

    hf:ORG/REPO[@REVISION][:TYPE], hf:ORG/REPO[@REVISION]/[FOLDER/]FILE.gguf, the same after hf.co/ or as an address
    of a page. Raises UsageError for what begins as a name and is none.
    """
    if not (form := _FORMS.match(text)):
        return None
    path, _, query = text[form.end() :].partition("#")[0].partition("?")
    rest = urllib.parse.unquote(path).rstrip("/")
    if shown := urllib.parse.parse_qs(query).get("show_file_info"):  # a page that shows what is in one file
        rest = f"{rest}/{shown[0]}"
    parts = rest.split("/")
    name = _of_repository(rest) if len(parts) == 2 else _of_file(parts) if len(parts) > 2 else None
    if name is None:
        meant = _of_file([*parts[:-1], f"{parts[-1]}.gguf"]) if len(parts) > 2 else None
        hint = did_you_mean(str(meant) if meant else None)
        if meant and parts[-1].lower().endswith(_OF_CHECKPOINTS):
            hint = f"; a checkpoint is named by its repository: edgellm run {meant._replace(file='')} --convert"
        raise UsageError(f"{text!r:.200} does not name a model of the Hugging Face hub; expected {FORMS}{hint}")
    return name


def parse_repository_name(name: str) -> HubName:
    """The repository of a checkpoint, hf:ORG/REPO[@REVISION] in any spelling. Raises UsageError."""
    parsed = None
    with contextlib.suppress(UsageError):
        parsed = parse_hub_name(name)
    if parsed is None or parsed.file or parsed.type:
        raise UsageError(f"{name!r} does not name a checkpoint; expected hf:ORG/REPO or hf:ORG/REPO@REVISION")
    return parsed


def _of_repository(text: str) -> HubName | None:
    match = _REPOSITORY.fullmatch(text)
    if not match or match["repo"].lower().endswith(".gguf"):  # a file without its repository
        return None
    wanted = match["type"] or ""
    if wanted.lower().endswith(".gguf"):
        return _of_file([*match["repo"].split("/"), wanted])
    return HubName(match["repo"], match["revision"], type="" if wanted.lower() == _ANY_TYPE else wanted)


def _of_file(parts: list[str]) -> HubName | None:
    """A file, or with nothing behind the revision a repository, as the page of a branch is."""
    match = _REPOSITORY.fullmatch("/".join(parts[:2]))
    if not match or match["type"]:
        return None
    revision, rest = match["revision"], parts[2:]
    if rest[0] in _PAGES and len(rest) > 1:
        revision, rest = rest[1], rest[2:]
    if not all(_is_plain(part) for part in (*rest, revision or "main")):
        return None
    revision = None if revision == "main" else revision
    if not rest:
        return HubName(match["repo"], revision)
    file = "/".join(rest)
    return HubName(match["repo"], revision, file) if file.lower().endswith(".gguf") else None


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


def is_plain(path: str) -> bool:
    """Whether a path inside an archive leads nowhere but down, by plain names."""
    return all(map(_is_plain, path.split("/")))


def _is_plain(part: str) -> bool:
    return part.strip(".") != "" and part.isprintable() and not any(c in part for c in '\\:*?"<>|')
