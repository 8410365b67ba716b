"""Limits of containers, on trees of files as kernels show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgellm import machine
from edgellm.machine import cgroups, cores

GIB = 1 << 30
NONE_V1 = str((1 << 63) - 4096)  # what version 1 says where no limit is set

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def v1(controllers: str, top: str = "/", folder: str = "/sys/fs/cgroup") -> str:
    return f"33 32 0:30 {top} {folder}/{controllers} ro,nosuid master:11 - cgroup cgroup rw,{controllers}\n"


@pytest.fixture
def system(tmp_path: Path):
    """A root with these files, and what this process is told there of its groups and of what is mounted."""

    def build(own: str, mounts: str, files: Mapping[str, str]) -> Path:
        told = {"proc/self/cgroup": own, "proc/self/mountinfo": "23 1 8:1 / / rw - ext4 /dev/sda rw\n" + mounts}
        for name, text in {**told, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),  # a container with a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000\n"}, None),  # no period, no share
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/\n", {"cpu.max": "5000 10000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),  # the outer one counts
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "300000 100000\n"}, 1),  # the inner one
        ("0::/a/b/c\n", {"a/b/cpu.max": "400000 100000\n", "cpu.max": "300000 100000\n"}, 3),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),  # a neighbour's
        ("0::/a\n", {"a/b/cpu.max": "100000 100000\n"}, None),  # a child's
        ("0::/docker/12ab\n", {"cpu.max": "200000 100000\n"}, 2),  # only the container's own group is mounted
        ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a:b c\n", {"a:b c/cpu.max": "200000 100000\n"}, 2),
        ("nonsense\n", {"cpu.max": "200000 100000\n"}, None),
    ],
)
def test_cores_of_version_2(system, own: str, files: Mapping[str, str], limit: float | None) -> None:
    assert cgroups.cpu_limit(system(own, V2, files)) == limit


QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("top", "own", "files", "limit"),
    [
        ("/", "/", {QUOTA: "-1", PERIOD: "100000"}, None),
        ("/", "/", {QUOTA: "150000", PERIOD: "100000"}, 1.5),
        ("/", "/a/b", {f"a/b/{QUOTA}": "-1", f"a/b/{PERIOD}": "100000",
                       f"a/{QUOTA}": "50000", f"a/{PERIOD}": "50000"}, 1),
        ("/docker/12ab", "/docker/12ab", {QUOTA: "300000", PERIOD: "100000"}, 3),  # the host's names of groups
        ("/docker/12ab", "/docker/12ab/inner", {f"inner/{QUOTA}": "100000", f"inner/{PERIOD}": "100000",
                                                QUOTA: "300000", PERIOD: "100000"}, 1),
        ("/docker/12ab", "/elsewhere", {QUOTA: "300000", PERIOD: "100000"}, 3),
        ("/", "/", {QUOTA: "300000"}, None),
        ("/", "/", {QUOTA: "0", PERIOD: "100000"}, None),
        ("/", "/", {QUOTA: "x", PERIOD: "100000"}, None),
    ],
)  # fmt: skip
def test_cores_of_version_1(system, top: str, own: str, files: Mapping[str, str], limit: float | None) -> None:
    """Where the controllers `cpu` and `cpuacct` share a tree, and others have other places."""
    told = f"5:memory:/elsewhere\n4:cpu,cpuacct:{own}\n1:name=systemd:/elsewhere\n"
    files = {f"cpu,cpuacct/{name}": text for name, text in files.items()}
    assert cgroups.cpu_limit(system(told, v1("memory") + v1("cpu,cpuacct", top), files)) == limit


def test_both_versions_at_once(system) -> None:
    own = "4:cpu,cpuacct:/job\n0::/session\n"
    v2 = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = {"unified/session/cgroup.procs": "", f"cpu/job/{QUOTA}": "200000", f"cpu/job/{PERIOD}": "100000"}
    assert cgroups.cpu_limit(system(own, v2 + v1("cpu"), files)) == 2


def test_a_folder_with_a_blank_in_its_name(system) -> None:
    root = system("0::/\n", V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040groups"), {})
    (root / "sys/fs/cgroup/my groups").mkdir(parents=True)
    (root / "sys/fs/cgroup/my groups/cpu.max").write_text("100000 100000")
    assert cgroups.cpu_limit(root) == 1


@pytest.mark.parametrize(
    ("files", "limit", "room"),
    [
        ({"memory.max": "max"}, None, None),
        ({"memory.max": str(2 * GIB), "memory.current": str(GIB)}, 2 * GIB, GIB),
        ({"memory.max": str(2 * GIB)}, 2 * GIB, 2 * GIB),
        ({"memory.max": "max", "memory.high": str(GIB), "memory.current": "0"}, GIB, GIB),
        ({"memory.max": str(GIB), "memory.current": str(GIB + 4096)}, GIB, 0),
        ({"memory.max": str(2 * GIB), "memory.current": str(2 * GIB),
          "memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file 5\n"}, 2 * GIB, GIB),
        ({"memory.max": str(3 * GIB), "memory.current": str(GIB),
          "a/memory.max": "max", "a/memory.current": str(GIB)}, 3 * GIB, 2 * GIB),
        ({"memory.max": str(3 * GIB), "memory.current": str(3 * GIB - 5),  # others in the outer group fill it
          "a/memory.max": str(GIB), "a/memory.current": "0"}, GIB, 5),
    ],
)  # fmt: skip
def test_memory_of_version_2(system, files: Mapping[str, str], limit: int | None, room: int | None) -> None:
    root = system("0::/a\n", V2, files)
    assert (cgroups.memory_limit(root), cgroups.memory_room(root)) == (limit, room)


def test_memory_of_version_1(system) -> None:
    files = {
        "memory/memory.limit_in_bytes": NONE_V1,
        "memory/a/memory.limit_in_bytes": str(2 * GIB),
        "memory/a/memory.usage_in_bytes": str(GIB + 100),
        "memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
    }
    root = system("9:memory:/a\n", v1("memory"), files)
    assert (cgroups.memory_limit(root), cgroups.memory_room(root)) == (2 * GIB, GIB)


def test_other_systems_have_no_limits(tmp_path: Path) -> None:
    assert cgroups.cpu_limit(tmp_path) is cgroups.memory_limit(tmp_path) is cgroups.memory_room(tmp_path) is None


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs and 64 GiB, of which 48 are available."""
    monkeypatch.setattr(cores, "usable_cpus", lambda: set(range(8)))
    monkeypatch.setattr(cores, "fast_cores", lambda root: 8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=48 * GIB))


@pytest.mark.parametrize(("quota", "n"), [("5000", 1), ("100000", 1), ("199999", 1), ("250000", 2), ("9900000", 8)])
def test_a_quota_limits_threads(system, big_machine, quota: str, n: int) -> None:
    root = system("0::/\n", V2, {"cpu.max": f"{quota} 100000"})
    assert machine.default_threads(root) == machine.usable_threads(root) == n


def test_a_limit_of_memory_counts_where_it_is_less_than_the_machine_has(system, big_machine) -> None:
    root = system("0::/\n", V2, {"memory.max": str(2 * GIB), "memory.current": str(GIB)})
    assert (machine.total_memory(root), machine.available_memory(root)) == (2 * GIB, GIB)
    root = system("0::/\n", V2, {"memory.max": str(100 * GIB), "memory.current": str(GIB)})
    assert (machine.total_memory(root), machine.available_memory(root)) == (64 * GIB, 48 * GIB)


def test_memory_is_what_the_kernel_tells(system, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=3, available=2))
    told = "MemTotal:       24576000 kB\nMemFree:         1000 kB\nMemAvailable:   12345678 kB\nSwapTotal: 7 kB\n"
    root = system("0::/\n", V2, {})
    (root / "proc/meminfo").write_text(told)
    assert (machine.total_memory(root), machine.available_memory(root)) == (24576000 * 1024, 12345678 * 1024)
    (root / "proc/meminfo").write_text(told.replace("MemAvailable", "MemBuffers"))  # before Linux 3.14
    assert (machine.total_memory(root), machine.available_memory(root)) == (3, 2)


def test_this_very_process() -> None:
    assert 1 <= machine.default_threads() <= machine.usable_threads() <= len(cores.usable_cpus())
    assert 0 < machine.available_memory() <= machine.total_memory() <= psutil.virtual_memory().total
