"""Files of the Hugging Face hub, at one commit.

A branch may move while its files are fetched. So it is asked once which commit it stands for, and everything is then
fetched at that commit. `huggingface_hub` knows the endpoint (HF_ENDPOINT), the token, and what a refusal means. The
bytes come through our own download, resumed, checked and shown like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import DownloadError
from edgellm.hub.download import Errand, Notice, Progress, download
from edgellm.hub.names import did_you_mean, nearest
from edgellm.hub.network import AccessDenied, Network, NotThere, explain, host_of, refusal, waiting_a_little
from edgellm.hub.others import cached_blob
from edgellm.hub.parts import FETCHED, part_of
from edgellm.hub.room import ask_for_room

_TIMEOUT = 15.0  # seconds without an answer


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a commit.

    digest:   its SHA-256, or Git's SHA-1 of it as a blob, as hex; None if the hub does not tell.
    version:  what differs between two contents of a file of this name.
    """

    repo: str
    commit: str
    name: str
    size: int | None
    digest: str | None
    version: str


def list_hub_files(repo: str, revision: str | None) -> list[HubFile]:
    """All files of a repository, with their folders, at the commit that a revision stands for now.

    Raises DownloadError.
    """
    import huggingface_hub

    def ask() -> Any:
        with _explained(repo, "", revision):
            api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            return api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)

    info = waiting_a_little(ask)
    files = [_listed(repo, info.sha or "", entry) for entry in info.siblings or []]
    if not info.sha:
        raise DownloadError(f"the hub does not say which commit of {repo} its files are of")
    return files


def look_up(repo: str, name: str, revision: str | None) -> HubFile:
    """One file, at the commit that a revision stands for now. Raises DownloadError."""
    import huggingface_hub

    def ask() -> Any:
        with _explained(repo, name, revision):
            return huggingface_hub.get_hf_file_metadata(_url(repo, name, revision), timeout=_TIMEOUT)

    metadata = waiting_a_little(ask)
    etag = metadata.etag or ""
    digest = etag if re.fullmatch("[0-9a-f]{64}", etag) else None
    if not (metadata.commit_hash or digest):
        raise DownloadError(f"the hub does not say which commit of {repo} {name} is of")
    commit = metadata.commit_hash or revision or "main"
    return HubFile(repo, commit, name, metadata.size, digest, version=etag or commit)


def fetch_from_hub(file: HubFile, folder: Path, progress: Progress, notice: Notice, magic: bytes = b"") -> Path:
    """Fetch a file into a work folder and return its path there; it is whole, and begins with `magic`.

    Raises DownloadError, HashMismatchError.
    """
    from huggingface_hub.utils import build_hf_headers

    target = place_in_work(file, folder)
    if not target.exists() and (blob := cached_blob(file.repo, file.digest or "")):
        _take(blob, target)  # `download` looks whether it is right
    with _explained(file.repo, file.name, file.commit):
        url = _url(file.repo, file.name, file.commit)
        authorization = build_hf_headers().get("authorization")
    what = f"fetching {file.name.rpartition('/')[2]}"
    download(Errand(url, what, Network(_TIMEOUT), file.digest, file.size, authorization), target, progress, notice)
    with open(target, "rb") as opened:
        found = opened.read(len(magic))
    if found != magic:
        target.unlink()
        raise DownloadError(f"{file.name} is not a {magic.decode()} file: it begins with {found!r}")
    return target


def place_in_work(file: HubFile, folder: Path) -> Path:
    """Where a file lies in a work folder once it is fetched.

    The name tells files with other contents apart, so that none is resumed with another's bytes.
    """
    version = re.sub(r"\W", "", file.version)[:12]
    return folder / f"{version}-{file.name.replace('/', '--')}{FETCHED}"


def _take(blob: Path, target: Path) -> None:
    """A file that the Hugging Face cache has already: the same bytes on the disk where that can be, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(blob.resolve(), target)
        return
    ask_for_room(target.parent, blob.stat().st_size)
    copy = part_of(target)
    shutil.copyfile(blob, copy)
    copy.rename(target)


def _listed(repo: str, commit: str, entry: Any) -> HubFile:
    lfs = entry.lfs or {}
    digest = lfs.get("sha256") if lfs else entry.blob_id
    digest = digest if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", digest or "") else None
    return HubFile(repo, commit, entry.rfilename, entry.size, digest, version=digest or commit)


def _url(repo: str, name: str, revision: str | None) -> str:
    import huggingface_hub

    return huggingface_hub.hf_hub_url(repo, name, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def _explained(repo: str, name: str, revision: str | None) -> Iterator[None]:
    """What `huggingface_hub` raises, as a DownloadError of one line.

    Its HTTP library, and so the types of its errors, differs between versions; what they are caused by does not.
    """
    import huggingface_hub

    usual = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        raise _reason(error, repo, name, revision) from None
    finally:
        huggingface_hub.logging.set_verbosity(usual)


def _reason(error: Exception, repo: str, name: str, revision: str | None) -> DownloadError:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return AccessDenied(
            f"{repo} needs its licence accepted on its page, https://huggingface.co/{repo}, and a token of whoever did "
            "so: run `hf auth login`, or set HF_TOKEN"
        )
    if kind == "RepositoryNotFoundError":
        return NotThere(f"{repo} does not exist, or is private and needs a token: run `hf auth login`")
    if kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return NotThere(f"{repo} has no file {name}{_near(repo, name, revision)}")
    if kind == "RevisionNotFoundError":
        return NotThere(f"{repo} has no revision {revision}")
    endpoint = _url("org/repo", "file", None)
    if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
        said = getattr(error.response, "reason_phrase", "") or getattr(error.response, "reason", "")  # type: ignore
        return refusal(host_of(endpoint), status, said, error.response.headers)  # type: ignore[attr-defined]
    if cause := _cause(error):
        explained = explain(cause, endpoint, Network().proxy_of(endpoint))
        return type(explained)(f"the hub cannot be asked: {explained}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DownloadError(f"the hub cannot be asked: {lines[0] if lines else kind}")


def _cause(error: BaseException | None) -> OSError | None:
    """What the operating system said, at the root of an error of an HTTP library."""
    found: list[OSError] = []
    while error is not None and len(found) < 20:
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, (TimeoutError, ssl.SSLError))):
            found.append(error)
        elif "Timeout" in type(error).__name__:
            found.append(TimeoutError())
        error = error.__cause__ or error.__context__
    return found[-1] if found else None


def _near(repo: str, name: str, revision: str | None) -> str:
    """The model file of a repository that a misspelt name may have meant."""
    with contextlib.suppress(DownloadError):
        names = [file.name for file in list_hub_files(repo, revision) if file.name.endswith(".gguf")]
        if near := nearest(name, names):
            return did_you_mean(near)
        if names:
            return f"; its GGUF files are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    return ""
