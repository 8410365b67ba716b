"""Files of the Hugging Face hub.

`huggingface_hub` knows the endpoint (HF_ENDPOINT), the token, and what a refusal means. The bytes come
through our own download, resumed and shown like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from edgellm.errors import DownloadError
from edgellm.hub.catalog import HubSource
from edgellm.hub.network import Network, Progress, download

_TIMEOUT = 15.0  # seconds without an answer


def list_hub_files(repo: str, revision: str | None) -> list[str]:
    """The names of all files of a repository, with their folders. Raises DownloadError."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    try:
        api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        return [entry.rfilename for entry in api.model_info(repo, revision=revision, timeout=_TIMEOUT).siblings or []]
    except Exception as error:  # as below
        raise DownloadError(_reason(error, HubSource(repo, "", revision))) from None


def fetch_from_hub(source: HubSource, target: Path, progress: Progress, magic: bytes = b"") -> None:
    """Write the file into `target`, checked against the sha256 that the hub tells for large files.

    magic:  what the file must begin with.

    Raises DownloadError, HashMismatchError.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers

    huggingface_hub.logging.set_verbosity_error()
    try:
        url = huggingface_hub.hf_hub_url(
            source.repo, source.file, revision=source.revision, endpoint=os.environ.get("HF_ENDPOINT")
        )
        authorization = build_hf_headers().get("authorization")
        metadata = huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
    except Exception as error:  # its HTTP library, and so what it raises, differs between versions
        raise DownloadError(_reason(error, source)) from None
    sha256 = metadata.etag if re.fullmatch("[0-9a-f]{64}", metadata.etag or "") else None
    version = re.sub(r"\W", "", metadata.etag or metadata.commit_hash or "")[:12]
    whole = target.with_name(f"{version}-{target.name}")
    download(url, whole, Network(_TIMEOUT), progress, f"fetching {target.name}", sha256, authorization)
    with open(whole, "rb") as file:
        if (found := file.read(len(magic))) != magic:
            whole.unlink()
            raise DownloadError(f"{source.file} is not a {magic.decode()} file: it begins with {found!r}")
    os.replace(whole, target)


def _reason(error: Exception, source: HubSource) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{source.repo} needs its licence accepted on its page, and a token: run `hf auth login`"
    if kind == "RepositoryNotFoundError":
        return f"{source.repo} does not exist, or is private and needs a token: run `hf auth login`"
    if kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return f"{source.repo} has no file {source.file}"
    if kind == "RevisionNotFoundError":
        return f"{source.repo} has no revision {source.revision}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    with contextlib.suppress(IndexError):
        return f"the hub cannot be asked: {lines[0]}"
    return f"the hub cannot be asked: {kind}"
