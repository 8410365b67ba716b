"""A checkpoint that shall be run: converted once, and kept until it changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from edgellm.cli.progress import Progress, reading
from edgellm.cli.terminal import note, size_text
from edgellm.errors import UsageError
from edgellm.files import models_folder

TYPE = "Q8_0"  # half the bytes of what people train in, and no loss that anyone would notice


def converted(named: str) -> Path:
    """The GGUF file made of a checkpoint, a folder or hf:ORG/REPO; it is made again only when the checkpoint changed.

    One that is quantized already keeps its types where GGUF has them; any other becomes TYPE.
    """
    from edgellm import hub
    from edgellm.convert.checkpoints import AS_IT_IS, convert_checkpoint
    from edgellm.convert.quantized import is_quantized

    with Progress() as progress:
        folder = Path(os.path.expanduser(named))
        if not folder.is_dir():
            folder = hub.pull_checkpoint(named, progress, progress.note)
        if not (folder / "config.json").is_file():
            raise UsageError(f"{named} is no checkpoint, so there is nothing to convert; leave out --convert")
        type_name = AS_IT_IS if is_quantized(folder) else TYPE
        target = models_folder() / f"{_plain(folder.resolve().name)}.{_state_of(folder)}.{type_name}.gguf"
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = "the types that it has" if type_name == AS_IT_IS else type_name
        note(f"converting {named} to {kept}; `edgellm convert` makes others")
        notes = convert_checkpoint(folder, target, type_name, progress=reading(progress, folder))
    for line in notes:
        note(line)
    note(f"wrote {target}, {size_text(target.stat().st_size)}; edgellm rm {target.name} deletes it")
    return target


def _state_of(folder: Path) -> str:
    """What differs when any file of a checkpoint is another one, in a few characters."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:8]


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"
