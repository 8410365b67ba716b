"""What an instruction set is to the rest of the house."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from edgellm.dataclass import dataclass
from edgellm.kernels.isa.cpu import host


@dataclass(frozen=True)
class Portable:
    """A CPU that stands for a family: what objects that ship with the package are compiled for.

    cpu:      LLVM's name of it.
    needs:    every feature that the code may use (LLVM's names), so what a CPU must have to run it.
    tuning:   LLVM's features that change which code is chosen, and not what a CPU must have.
    """

    cpu: str
    needs: tuple[str, ...]
    tuning: tuple[str, ...] = ()

    def target(self, more: Iterable[str] = ()) -> tuple[str, str]:
        """(LLVM CPU name, features); more: what code may use besides that is only run where a CPU has it."""
        return self.cpu, ",".join((*(f"+{name}" for name in (*self.needs, *more)), *self.tuning))

    def lacks(self, features: Mapping[str, bool]) -> list[str]:
        """What a CPU with these feature flags does not have."""
        return [name for name in self.needs if not features.get(name)]


@dataclass(frozen=True)
class Isa:
    """One instruction set: the words it overrides, and the register tiles that suit it.

    name:           as in `EDGELLM_ISA` and `edgellm info`.
    needs:          tells from the CPU's feature flags (LLVM's names) whether this CPU has it.
    target:         (LLVM CPU name, features) to compile for, from the host's own.
    lanes:          float32 lanes of a register.
    n_registers:    so many of them hold a tile of sums and what is multiplied.
    tile_tokens:    tokens that meet one unpacked tile of weights at a time (16 rows of it).
    has_long_code:  whether a product of bytes takes several instructions: kernels for several tokens loop within a
                    block then, or they would be longer than what a core keeps decoded.
    portable:       what its kernels are compiled for when they are to ship with the package.
    is_for_family:  whether they are compiled for that, and not for this machine.
    """

    name: str
    title: str
    needs: Callable[[Mapping[str, bool]], bool | None]
    target: Callable[[str, Mapping[str, bool]], tuple[str, str]]
    vocabulary: type
    lanes: int
    n_registers: int
    tile_tokens: int
    has_long_code: bool = False
    portable: Portable | None = None
    is_for_family: bool = False

    def for_family(self, more: Iterable[str] = ()) -> Isa:
        """The same, compiled for any CPU of the family instead of the host. Only where there is a `portable`.

        more:  as in `Portable.target`.
        """
        portable = self.portable
        assert portable is not None
        return replace(self, target=lambda cpu, features: portable.target(more), is_for_family=True)

    @property
    def tiles_together(self) -> int:
        """Unpacked tiles of 16 rows that tokens meet at a time: two where half of the registers can hold their sums."""
        return 2 if self.n_registers // 2 >= 2 * self.tile_tokens * (16 // self.lanes) else 1

    @property
    def stream_level(self) -> int:
        """The level of cache into which to prefetch weights that are read once, as `Vocabulary.prefetch` names it.

        The first, but for Intel's CPUs: there it waits for a dozen lines at a time, and the second for some fifty.
        """
        cpu = "" if self.is_for_family else host()[0]
        return 2 if any(part in cpu for part in _OF_INTEL) else 1

    @property
    def f32_tile_rows(self) -> int:
        """Rows of a tile of float32. Two registers of sums for an input, where they are wide, load it half as often."""
        return max(16, 2 * self.lanes)


# Parts of what LLVM calls Intel's CPUs of the last decade: skylake, sapphirerapids, broadwell, gracemont, sierraforest.
_OF_INTEL = ("lake", "rapids", "well", "mont", "forest", "ridge")


def host_target(cpu: str, features: Mapping[str, bool]) -> tuple[str, str]:
    """Compile for the host exactly as it is."""
    return cpu, ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))
