"""Models that other programs keep on this machine: Ollama, LM Studio, the Hugging Face cache. They are run in place.

Nothing of theirs is changed or removed. What their files say is believed only as far as it names plain files in their
own folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgellm.errors import FileProblem
from edgellm.files import user_folder
from edgellm.hub.names import did_you_mean, nearest, shard_names
from edgellm.hub.variants import variants_of

OLLAMA, LM_STUDIO, CACHE = "Ollama", "LM Studio", "the Hugging Face cache"
PREFIXES = {"ollama:": OLLAMA, "lmstudio:": LM_STUDIO}

_REGISTRY, _LIBRARY, _LATEST = "registry.ollama.ai", "library", "latest"
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MOST_MANIFESTS, _MOST_BYTES = 10_000, 1 << 20


class OthersModel(NamedTuple):
    """A model of another program.

    name:           how it is called here. owner: the program.
    path:           its (first) file, or the folder of a checkpoint.
    n_bytes:        of all its files; what is missing counts nothing.
    fault:          why it cannot be run; empty for what can.
    is_checkpoint:  whether it has to be converted.
    """

    name: str
    owner: str
    path: Path
    n_bytes: int
    fault: str = ""
    is_checkpoint: bool = False


def models_of_others() -> list[OthersModel]:
    """All that is found, by name; folders that cannot be read count as empty."""
    found: dict[str, OthersModel] = {}
    for models in (_of_ollama(), _of_lm_studio(), _of_the_cache()):
        for model in models:
            found.setdefault(model.name, model)
    return list(found.values())


def find_of_others(name: str) -> OthersModel:
    """The model that ollama:NAME or lmstudio:NAME means.

    An Ollama name may have its tag, :latest is understood; one of LM Studio may be the end of its path. Raises
    FileProblem for what is not there, or cannot be run, and for a name of two models.
    """
    prefix = next(prefix for prefix in PREFIXES if name.lower().startswith(prefix))
    owner, rest = PREFIXES[prefix], name[len(prefix) :].removesuffix(f":{_LATEST}").strip("/").lower()
    known = [model for model in (_of_ollama() if owner == OLLAMA else _of_lm_studio())]
    by_name = {model.name.removeprefix(prefix).lower(): model for model in known}
    fitting = [by_name[rest]] if rest in by_name else []
    if not fitting and rest:
        fitting = [model for called, model in by_name.items() if _is_short_for(rest, called, owner)]
    if len(fitting) > 1:
        raise FileProblem(f"{name} names {len(fitting)} models: {', '.join(model.name for model in fitting)}")
    if not fitting:
        names = [model.name for model in known]
        has = f"it has {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "it has none"
        way = f"`ollama pull {rest}` fetches it" if owner == OLLAMA and rest else f"{owner} fetches models"
        near = did_you_mean(nearest(prefix + rest, names)) or ";"
        raise FileProblem(f"{owner} holds no {name!r:.200} on this machine{near} {has}; {way}")
    if fitting[0].fault:
        raise FileProblem(f"{fitting[0].name}: {fitting[0].fault}")
    return fitting[0]


def cached_file(repo: str, revision: str | None, file: str) -> Path | None:
    """A file of a repository in the Hugging Face cache, whole with all its shards; None when it is not there."""
    if snapshot := _snapshot(_cache_folder() / f"models--{repo.replace('/', '--')}", revision or "main"):
        path = snapshot / file
        if all(path.with_name(name).is_file() for name in shard_names(path.name)):
            return path
    return None


def cached_files(repo: str, revision: str | None) -> dict[str, int]:
    """The bytes of all files of a repository in the Hugging Face cache, by name with their folders."""
    snapshot = _snapshot(_cache_folder() / f"models--{repo.replace('/', '--')}", revision or "main")
    return _sizes(snapshot) if snapshot else {}


def cached_blob(repo: str, digest: str) -> Path | None:
    """The file of the Hugging Face cache that has this digest, if its name is right."""
    path = _cache_folder() / f"models--{repo.replace('/', '--')}" / "blobs" / digest
    return path if re.fullmatch("[0-9a-f]{40,64}", digest) and path.is_file() else None


# --- Ollama: manifests name layers by their digests ---------------------------------------------------------------


def _ollama_folders() -> Iterator[Path]:
    if told := os.environ.get("OLLAMA_MODELS"):
        yield Path(told)
        return
    if home := user_folder():
        yield home / ".ollama" / "models"
    if sys.platform == "linux":  # where its service keeps them
        yield Path("/usr/share/ollama/.ollama/models")
        yield Path("/var/lib/ollama/.ollama/models")


def _of_ollama() -> Iterator[OthersModel]:
    for folder in _ollama_folders():
        with contextlib.suppress(OSError):
            manifests = sorted((folder / "manifests").glob("*/*/*/*"))
            for manifest in manifests[:_MOST_MANIFESTS]:
                if manifest.is_file():
                    yield _ollama_model(folder, manifest)


def _ollama_model(folder: Path, manifest: Path) -> OthersModel:
    registry, space, model, tag = manifest.relative_to(folder / "manifests").parts
    where = "" if registry == _REGISTRY else f"{registry}/"
    where += "" if not where and space == _LIBRARY else f"{space}/"
    name = f"ollama:{where}{model}" + ("" if tag == _LATEST else f":{tag}")
    try:
        with open(manifest, "rb") as file:
            layers = json.loads(file.read(_MOST_BYTES))["layers"]
        kinds = [(str(layer["mediaType"]), _blob(folder, layer), layer.get("size")) for layer in layers]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return OthersModel(name, OLLAMA, manifest, 0, "its manifest cannot be read")
    weights = [(path, size) for kind, path, size in kinds if kind == f"{_LAYER}model"]
    path, size = weights[0] if weights else (None, 0)
    if path is None:
        return OthersModel(name, OLLAMA, manifest, 0, "it holds no GGUF file (a model of the cloud, or another form)")
    n_bytes = _bytes_of(path)
    fault = ""
    if not path.is_file():
        fault = f"its file {path.name} is missing; `ollama pull` fetches it again"
    elif not _is_gguf(path):
        fault = "its weights are not in a GGUF file"
    elif type(size) is int and size != n_bytes:
        fault = f"its file has {n_bytes:,} bytes, expected {size:,}"
    elif len(weights) > 1:
        fault = "its weights are in several layers, which are not put together here"
    elif adapters := [str(layer) for kind, layer, _ in kinds if kind == f"{_LAYER}adapter"]:
        fault = f"it is a model with an adapter: edgellm run {path} --lora {' --lora '.join(adapters)}"
    return OthersModel(name, OLLAMA, path, n_bytes, fault)


def _blob(folder: Path, layer: Any) -> Path:
    """Where a layer lies. Raises KeyError for a digest that is none: it must not lead out of the folder."""
    match = _DIGEST.fullmatch(str(layer["digest"]))
    if not match:
        raise KeyError("digest")
    return folder / "blobs" / f"sha256-{match[1]}"


# --- LM Studio: PUBLISHER/REPOSITORY/FILE.gguf --------------------------------------------------------------------


def _lm_studio_folders() -> Iterator[Path]:
    home = user_folder()
    if home is None:
        return
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError):
        pointed = (home / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip()
        if pointed:
            yield Path(pointed) / "models"
    yield home / ".lmstudio" / "models"
    yield home / ".cache" / "lm-studio" / "models"


def _of_lm_studio() -> Iterator[OthersModel]:
    for folder in dict.fromkeys(_lm_studio_folders()):
        with contextlib.suppress(OSError):
            for repository in sorted(path for path in folder.glob("*/*") if path.is_dir()):
                place = repository.relative_to(folder).as_posix()
                yield from _gguf_models(f"lmstudio:{place}", LM_STUDIO, repository)


# --- the Hugging Face cache: snapshots of commits link to blobs ---------------------------------------------------


def _cache_folder() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if told := os.environ.get(name):
            return Path(os.path.expanduser(told))
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_HOME", usual))) / "hub"


def _of_the_cache() -> Iterator[OthersModel]:
    with contextlib.suppress(OSError):
        for repository in sorted(_cache_folder().glob("models--*--*")):
            name = f"hf:{repository.name.removeprefix('models--').replace('--', '/', 1)}"
            if snapshot := _snapshot(repository, "main"):
                yield from _gguf_models(name, CACHE, snapshot)
                if (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors")):
                    yield OthersModel(name, CACHE, snapshot, sum(_sizes(snapshot).values()), is_checkpoint=True)


def _snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a commit, or of the one that a branch stood for when it was last asked; None without one."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError):
        reference = repository / "refs" / revision
        commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else revision
        snapshot = repository / "snapshots" / commit
        if re.fullmatch("[0-9a-f]{40}", commit) and snapshot.is_dir():
            return snapshot
    return None


# --- all of them --------------------------------------------------------------------------------------------------


def _gguf_models(name: str, owner: str, folder: Path) -> Iterator[OthersModel]:
    for variant in variants_of(_sizes(folder)):
        path = folder / variant.file
        lacking = [shard for shard in shard_names(path.name) if not path.with_name(shard).is_file()]
        fault = f"{', '.join(lacking)} is not there" if lacking else "" if _is_gguf(path) else "it is not a GGUF file"
        yield OthersModel(f"{name}/{variant.file}", owner, path, variant.n_bytes or _bytes_of(path), fault)


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of all files below a folder; what links to nowhere is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = _bytes_of(path)
    return found


def _bytes_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _is_gguf(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(4) == b"GGUF"
    return False


def _is_short_for(text: str, name: str, owner: str) -> bool:
    """Whether a name of a model may be shortened so: to its parts, from any on, with or without the ending."""
    if owner == OLLAMA:  # without its tag, when it has only one
        return name.partition(":")[0] == text
    parts = name.split("/")
    ends = ["/".join(parts[at:]) for at in range(len(parts))] + ["/".join(parts[:at]) for at in range(1, len(parts))]
    ends += ["/".join(parts[1:at]) for at in range(2, len(parts))]
    return text in ends or f"{text}.gguf" in ends
