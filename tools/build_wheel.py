"""Build a wheel for Linux on x86-64 that brings its kernels compiled, so that a first start compiles nothing.

    python tools/build_wheel.py                          # dist/edgellm-*-py3-none-manylinux_2_17_x86_64.whl
    python tools/build_wheel.py --out FOLDER --only add  # one kernel, to try it

Any x86-64 machine with Linux will do: kernels are compiled for each family of CPUs that an instruction set names
(`Isa.portable`), not for this one, and none is run. It takes some twenty minutes on two cores. Needs hatchling.
`pip wheel .` builds the other wheel, for all platforms and without kernels.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # kernels must be made from the sources that go into the wheel

from wheel_hook import FOLDER  # noqa: E402

from edgellm.kernels import prebuilt  # noqa: E402
from edgellm.kernels.isa import ALL, AVX512, Isa, amx  # noqa: E402
from edgellm.kernels.registry import all_kernels  # noqa: E402
from edgellm.kernels.sources import source_hash  # noqa: E402

OF_AMX = {kernel.name: kernel for kernel in all_kernels(needs_amx=True)}  # beside those of AVX-512
KERNELS = {kernel.name: kernel for kernel in all_kernels()} | OF_AMX
ISAS = {isa.name: isa for isa in ALL if isa.portable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the wheel's folder (default: dist)")
    parser.add_argument("--only", nargs="+", metavar="KERNEL", choices=KERNELS, help="kernels by name (default: all)")
    parser.add_argument("--isa", choices=ISAS, help=argparse.SUPPRESS)  # how it starts itself: objects, no wheel
    options = parser.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        parser.error("this builds on Linux for x86-64 only")
    names = options.only or list(KERNELS)
    if options.isa:
        compile_for(ISAS[options.isa], names, options.out)
        return
    sources = source_hash()
    with tempfile.TemporaryDirectory() as folder:
        compile_all(names, folder)
        if source_hash() != sources:
            raise SystemExit("a source was changed while kernels were compiled from it; start again")
        pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip_wheel, "--wheel-dir", options.out, ROOT], env={**os.environ, FOLDER: folder}, check=True)


def compile_all(names: list[str], folder: str) -> None:
    """The file of every instruction set, by processes side by side."""
    processes = []
    for isa in ISAS.values():
        command = [sys.executable, __file__, "--isa", isa.name, "--out", folder, "--only", *names]
        processes.append(subprocess.Popen(command))
    if any([process.wait() for process in processes]):
        raise SystemExit("kernels could not be compiled")


def compile_for(isa: Isa, names: list[str], folder: Path) -> None:
    from edgellm.kernels.compiler import compile_kernel

    plain, with_amx = isa.for_family(), isa.for_family(amx.FEATURES)
    if isa is not AVX512:
        names = [name for name in names if name not in OF_AMX]
    objects = {name: compile_kernel(KERNELS[name], with_amx if name in OF_AMX else plain) for name in names}
    path = prebuilt.write(folder, isa, source_hash(), objects)
    print(f"{path.name}: {len(objects)} kernels, {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
