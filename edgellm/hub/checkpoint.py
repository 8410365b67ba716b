"""Checkpoints of the Hugging Face hub: the files of a repository that a conversion needs, all of one commit."""

from __future__ import annotations

import re
from pathlib import Path

from edgellm.errors import DownloadError
from edgellm.hub.download import Notice, Progress
from edgellm.hub.huggingface import HubFile, list_hub_files
from edgellm.hub.integrity import forget
from edgellm.hub.lock import only_one
from edgellm.hub.names import parse_repository_name
from edgellm.hub.parts import work_folder, working_in
from edgellm.hub.place import bring, of_one_commit
from edgellm.hub.room import told_when_full
from edgellm.hub.store import checkpoints_folder

# Files beside the weights: hyperparameters, tokenizer, chat templates, the model card; and of models that make vectors
# what comes after the model (1_Pooling, 2_Dense, ...).
_SMALL = re.compile(
    r"[\w.-]+\.(json|jinja|model|tiktoken)|merges\.txt|vocab\.txt|README\.md|additional_chat_templates/[\w.-]+\.jinja"
    r"|[1-9]_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)"
)
# The weights, best kind first: safetensors before what only a pickle explains.
_WEIGHTS = (re.compile(r"(adapter_)?model([\w.-]*)\.safetensors"), re.compile(r"(adapter|pytorch)_model([\w.-]*)\.bin"))


def fetch_checkpoint(name: str, progress: Progress, notice: Notice) -> Path:
    """See `edgellm.hub.pull_checkpoint`."""
    parsed = parse_repository_name(name)
    folder = checkpoints_folder() / str(parsed).removeprefix("hf:")
    lock = only_one(folder, taken=lambda: notice(f"{name} is already being fetched; waiting for it"))
    with lock, working_in(work_folder(folder)) as work:
        wanted = of_one_commit(work, lambda commit: _wanted(parsed.repo, commit or parsed.revision))
        with told_when_full(checkpoints_folder()):
            bring([(file, folder / file.name) for file in wanted], work, progress, notice)
        _remove_others(folder, {file.name for file in wanted})
    return folder


def _wanted(repo: str, revision: str | None) -> list[HubFile]:
    """Small files first, so that what is missing shows before the long wait."""
    files = list_hub_files(repo, revision)
    weights = next((found for kind in _WEIGHTS if (found := [file for file in files if kind.fullmatch(file.name)])), [])
    if not weights:
        has_gguf = any(file.name.endswith(".gguf") for file in files)
        hint = "; it holds GGUF files, which need no conversion" if has_gguf else ""
        raise DownloadError(f"{repo} has no safetensors or PyTorch files{hint}")
    return [*(file for file in files if _SMALL.fullmatch(file.name)), *weights]


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Remove what an earlier commit had and this one has not: shards of it would be taken for weights."""
    for path in [*folder.glob("*"), *folder.glob("additional_chat_templates/*"), *folder.glob("[1-9]_*/*")]:
        name = path.relative_to(folder).as_posix()
        if name not in wanted and any(kind.fullmatch(name) for kind in (_SMALL, *_WEIGHTS)) and not path.is_dir():
            path.unlink()
            forget(path)
