"""The sources that kernels are made of, as one hash: what was compiled from others is never run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import edgellm.quants


def source_hash() -> str:
    """SHA-256, in hex, of every file that could change a kernel. Takes a millisecond or two."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    sources = [*here.rglob("*.py"), *Path(edgellm.quants.__file__).parent.glob("*.py")]
    for source in sorted(sources):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
