"""Checkpoints of the Hugging Face hub: the files of a repository that a conversion needs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgellm.errors import DownloadError, UsageError
from edgellm.files import home
from edgellm.hub.catalog import HubSource
from edgellm.hub.huggingface import fetch_from_hub, list_hub_files
from edgellm.hub.lock import only_one
from edgellm.hub.network import Progress

_NAME = re.compile(r"hf:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w.-]*))?")
# Files beside the weights: hyperparameters, tokenizer, chat templates, the model card.
_SMALL = re.compile(
    r"[\w.-]+\.(json|jinja|model|tiktoken)|merges\.txt|vocab\.txt|README\.md|additional_chat_templates/[\w.-]+\.jinja"
)
# The weights, best kind first: safetensors before what only a pickle explains.
_WEIGHTS = (re.compile(r"(adapter_)?model([\w.-]*)\.safetensors"), re.compile(r"(adapter|pytorch)_model([\w.-]*)\.bin"))


def fetch_checkpoint(name: str, progress: Progress) -> Path:
    """See `edgellm.hub.pull_checkpoint`."""
    match = _NAME.fullmatch(name)
    if not match:
        raise UsageError(f"{name!r} does not name a checkpoint; expected hf:ORG/REPO or hf:ORG/REPO@REVISION")
    repo, revision = match["repo"], match["revision"]
    folder = home() / "checkpoints" / name.removeprefix("hf:")
    with only_one(folder.with_name(f"{folder.name}.lock"), waiting=lambda: None):
        for file in _wanted(repo, list_hub_files(repo, revision)):
            target = folder / file
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                work = target.with_name(f".{target.name}.new")
                fetch_from_hub(HubSource(repo, file, revision), work, progress)
                os.replace(work, target)
    return folder


def _wanted(repo: str, files: list[str]) -> list[str]:
    """Small files first, so that what is missing shows before the long wait."""
    weights = next((found for kind in _WEIGHTS if (found := [file for file in files if kind.fullmatch(file)])), [])
    if not weights:
        hint = "; it holds GGUF files, which need no conversion" if any(f.endswith(".gguf") for f in files) else ""
        raise DownloadError(f"{repo} has no safetensors or PyTorch files{hint}")
    return [*(file for file in files if _SMALL.fullmatch(file)), *weights]
