"""LoRA beside the matrices of experts, as PEFT saves it: for GGUF they are a stack, [n_experts, n_out, n_in].

PEFT has two forms. Where each expert is a module of its own (transformers 4), its two matrices are named after it, as
those of any linear: ...mlp.experts.3.up_proj.lora_A.weight. Where one parameter holds all of them (transformers 5),
adapter_config.json names it in target_parameters, and the file has the matrices of all experts, of rank r, in one:
lora_A [n_experts * r, n_in], expert by expert, and lora_B [n_out, r * n_experts], rank by rank. They are named after
the module that holds the parameter; of several parameters of one module, the last one has its name, and each before it
one ".base_layer" more. Gates and ups are parts of one parameter, and have a rank in common.

Before version 0.19.1, PEFT took inputs for outputs there, unless a parameter is [n_experts, n_in, n_out]: then lora_A
stands where lora_B should.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.adapters.adapter import LowRank
from edgellm.formats.adapters.naming import Naming, Stack
from edgellm.formats.adapters.peft_settings import CONFIG, PeftSettings, is_meant

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "0.19.1"  # of PEFT, whose form is written
SIDES = ("lora_A", "lora_B")
# Linears that PEFT takes for parts of experts where a mixture names them among its modules, and not where it names
# their weights.
_LIKE_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj")

Arrays = dict[str, "NDArray[np.float32]"]


class ExpertParts:
    """The tensors of a folder that belong to experts, gathered until all are there.

    modules:  the names of modules that had some.
    """

    def __init__(self, naming: Naming, settings: PeftSettings, plain: Callable[[str], str]) -> None:
        self._stacks, self._settings = naming.stacks, settings
        self._patterns = {
            stack.split.format("*"): name for name, stack in naming.stacks.items() if stack.split is not None
        }
        self._parameters = dict(_named_after(self._targets(naming, plain)))
        self._of_modules: dict[str, dict[int, Arrays]] = defaultdict(lambda: defaultdict(dict))
        self._of_parameters: dict[str, Arrays] = defaultdict(dict)

    @property
    def modules(self) -> list[str]:
        of_modules = (self._module(name, expert) for name, found in self._of_modules.items() for expert in found)
        return [*of_modules, *self._of_parameters]

    def take(self, module: str, part: str, read: Callable[[], NDArray[np.float32]]) -> bool:
        """Whether a tensor belongs to experts, and is not there already; then it is kept."""
        if (found := self._expert_of(module)) is not None:
            name, expert = found
            place = self._of_modules[name][expert]
        elif module in self._parameters:
            place = self._of_parameters[self._parameters[module]]
        else:
            return False
        if part in place:
            return False
        place[part] = read()
        return True

    def low_ranks(self) -> dict[str, LowRank]:
        """What is added to each stack, by GGUF's names. Raises FormatError, UnsupportedError."""
        found: dict[str, LowRank] = {}
        for name, change in self._all():
            if name in found:
                raise FormatError(f"{name}: its experts are there twice, under different names")
            found[name] = change
        return found

    def _all(self) -> Iterator[tuple[str, LowRank]]:
        for name, experts in self._of_modules.items():
            numbers = range(self._stacks[name].n_experts)
            yield name, _stacked([self._one(self._module(name, i), experts.get(i)) for i in numbers])
        for parameter, parts in self._of_parameters.items():
            yield from self._divided(parameter, parts)

    def _targets(self, naming: Naming, plain: Callable[[str], str]) -> list[str]:
        """The parameters of experts that target_parameters names, as they stand in their modules. Raises
        UnsupportedError for a name that is no weight's.
        """
        known = dict.fromkeys(parameter for stack in naming.stacks.values() for parameter in stack.parameters)
        wanted = [plain(name) for name in self._settings.target_parameters]
        for target in wanted:
            if not any(is_meant(name, target) for name in (*known, *naming.ours)):
                raise UnsupportedError(
                    f"{CONFIG}: target_parameters names {target!r:.100}, which is neither experts nor a weight that "
                    "edgellm knows in this family"
                )
        return [name for name in known if any(is_meant(name, target) for target in wanted)]

    def _expert_of(self, module: str) -> tuple[str, int] | None:
        """The stack that a module belongs to, and the expert that it is."""
        for number in re.finditer(r"(?<=\.)\d{1,9}(?=\.)", module):
            name = self._patterns.get(f"{module[: number.start()]}*{module[number.end() :]}")
            if name is not None and self._module(name, expert := int(number[0])) == module:
                return (name, expert) if expert < self._stacks[name].n_experts else None
        return None

    def _module(self, name: str, expert: int) -> str:
        return (self._stacks[name].split or "").format(expert)

    def _one(self, module: str, parts: Arrays | None) -> LowRank | None:
        """What is added to one expert, as [rank, n_in] and [n_out, rank]; None for one that has nothing."""
        if parts is None:
            return None
        a, b = self._sides(module, parts)
        if len(a) != b.shape[1]:
            raise FormatError(f"{module}: lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}")
        return LowRank(a, b, self._settings.scale(module, len(a)))

    def _divided(self, parameter: str, parts: Arrays) -> Iterator[tuple[str, LowRank]]:
        """What is added to each of the stacks that are parts of a parameter."""
        stacks = {name: stack for name, stack in self._stacks.items() if parameter in stack.parameters}
        stack = next(iter(stacks.values()))
        a, b = self._sides(parameter, parts)
        n, (n_flat, n_in), n_out = stack.n_experts, a.shape, len(b)
        if n_flat % n or b.shape[1] != n_flat:
            raise FormatError(
                f"{parameter}: lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}; expected "
                f"[{n} * rank, n_in] and [n_out, rank * {n}], for {n} experts"
            )
        rank = n_flat // n
        first: NDArray[np.float32] = a.reshape(n, rank, n_in)
        second: NDArray[np.float32] = b.reshape(n_out, rank, n).transpose(2, 0, 1)
        if self._is_turned(stack, n_in, n_out):
            first, second = second.swapaxes(1, 2), first.swapaxes(1, 2)
        if second.shape[1] % stack.n_parts:
            raise FormatError(f"{parameter}: its matrices have {second.shape[1]} outputs, for {stack.n_parts} parts")
        scale = self._settings.scale(parameter, rank)
        yield from _apart(LowRank(first, second, scale), stacks)

    def _is_turned(self, stack: Stack, n_in: int, n_out: int) -> bool:
        """Whether lora_A has the outputs, as before VERSION; where these are as many, the version alone says it."""
        if stack.is_across or n_in == stack.n_in != n_out:
            return False
        if n_out == stack.n_in != n_in:
            return True
        version, notes = self._settings.version, self._settings.notes
        note = f"{CONFIG}: peft_version is missing; experts with as many inputs as outputs are read as before {VERSION}"
        if version is None and note not in notes:
            notes.append(note)
        return version is None or version < _numbers(VERSION)

    def _sides(self, module: str, parts: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._settings.is_dora or "lora_magnitude_vector" in parts:
            raise UnsupportedError(f"{module}: experts with a magnitude (use_dora); edgellm knows them for linears")
        if parts.keys() != set(SIDES) or any(x.ndim != 2 for x in parts.values()):
            shapes = ", ".join(f"{part} {list(x.shape)}" for part, x in sorted(parts.items()))
            raise FormatError(f"{module} has {shapes}; expected lora_A and lora_B of two dimensions")
        return parts["lora_A"], parts["lora_B"]


def _named_after(parameters: list[str]) -> Iterator[tuple[str, str]]:
    """The module after which the matrices of each parameter are named, and the parameter."""
    of_modules: dict[str, list[str]] = defaultdict(list)
    for parameter in parameters:
        of_modules[parameter.rpartition(".")[0]].append(parameter)
    for module, own in of_modules.items():
        for depth, parameter in enumerate(reversed(own)):
            yield module + depth * ".base_layer", parameter


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _stacked(experts: list[LowRank | None]) -> LowRank:
    """The same for all experts: of the largest rank, filled up with zeros. Raises FormatError for different widths."""
    there = [one for one in experts if one is not None]
    if len({one.shape for one in there}) > 1:
        raise FormatError(f"experts have the shapes {sorted({one.shape for one in there})}; expected one shape")
    (n_out, n_in), rank = there[0].shape, max(one.rank for one in there)
    scale = Counter(one.scale for one in there).most_common(1)[0][0]
    a, b = np.zeros((len(experts), rank, n_in), np.float32), np.zeros((len(experts), n_out, rank), np.float32)
    for expert, one in enumerate(experts):
        if one is not None:
            a[expert, : one.rank], b[expert, :, : one.rank] = one.a, _with_scale(one, scale)
    return LowRank(a, b, scale)


def _with_scale(change: LowRank, scale: float) -> NDArray[np.float32]:
    """B for another scale, which gets what the scales differ by."""
    return change.b if change.scale == scale else change.b * np.float32(change.scale / scale)


def _apart(change: LowRank, stacks: Mapping[str, Stack]) -> Iterator[tuple[str, LowRank]]:
    """What is added to each part of a parameter: each with the ranks where its B is not zero, which are those of others
    mostly. A part without any is left out, unless all are.
    """
    for name, stack in stacks.items():
        b = change.b[:, stack.rows(change.shape[1])]
        kept = b.any((0, 1)) if len(stacks) > 1 and change.b.any() else np.ones(change.rank, np.bool_)
        if kept.any():
            yield name, LowRank(change.a[:, kept], np.ascontiguousarray(b[:, :, kept]), change.scale)


# --- writing ------------------------------------------------------------------------------------------------


def parameters_of(weights: Mapping[str, LowRank], naming: Naming) -> dict[str, LowRank]:
    """What is added to whole parameters, by the names that transformers 5 has for them, in their order.

    Raises FormatError for parts that do not go together.
    """
    parts: dict[str, list[tuple[Stack, LowRank]]] = defaultdict(list)
    for name, stack in naming.stacks.items():
        if name in weights:
            parts[stack.parameters[0]].append((stack, weights[name]))
    return {parameter: _joined(parameter, own) for parameter, own in parts.items()}


def tensors_of(parameters: Mapping[str, LowRank]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for module, parameter in _named_after(list(parameters)):
        change = parameters[parameter]
        yield f"{module}.lora_A.weight", change.a.reshape(-1, change.a.shape[2])
        yield f"{module}.lora_B.weight", change.b.transpose(1, 2, 0).reshape(change.b.shape[1], -1)


def is_like_experts(module: str) -> bool:
    """Whether PEFT would take a linear for a part of experts."""
    return module.rpartition(".")[2] in _LIKE_EXPERTS


def _joined(parameter: str, parts: list[tuple[Stack, LowRank]]) -> LowRank:
    """Parts of a parameter as what is added to all of it: with the ranks of each, one behind the other.

    Raises FormatError for parts that do not go together.
    """
    first, n_parts = parts[0][1], parts[0][0].n_parts
    scale = max((change.scale for _, change in parts), key=abs)
    n_experts, n_out, _ = first.b.shape
    if len({change.shape for _, change in parts}) > 1:
        raise FormatError(f"the parts of {parameter} have different shapes; expected one shape")
    shares_a = all(np.array_equal(change.a, first.a) for _, change in parts)  # as PEFT trains it
    rank = first.rank if shares_a else sum(change.rank for _, change in parts)
    whole, start = np.zeros((n_experts, n_parts * n_out, rank), np.float32), 0
    for own, change in parts:
        whole[:, own.rows(n_parts * n_out), start : start + change.rank] = _with_scale(change, scale)
        start += 0 if shares_a else change.rank
    a = first.a if shares_a else np.concatenate([change.a for _, change in parts], 1)
    return LowRank(a, whole, scale)


# --- gates and ups in one stack -----------------------------------------------------------------------------

_GATES_AND_UPS = "ffn_gate_up_exps"
_HALVES = ("ffn_gate_exps", "ffn_up_exps")


def fitted(weights: Mapping[str, LowRank], names: Container[str]) -> dict[str, LowRank]:
    """The same for a model with these names, which may have gates and ups of experts in two stacks, or in one.

    What has no place either way keeps its name. Raises FormatError for gates and ups of different shapes.
    """
    found: dict[str, LowRank] = {}
    halves: dict[str, list[tuple[Stack, LowRank]]] = defaultdict(list)
    for name, change in weights.items():
        layer, kind, _ = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        stacks = {f"{layer}.{half}.weight": Stack(len(change.a), 0, None, (), i, 2) for i, half in enumerate(_HALVES)}
        if name in names or not change.is_of_experts:
            found[name] = change
        elif kind == _GATES_AND_UPS and all(half in names for half in stacks):
            found |= _apart(change, stacks)
        elif kind in _HALVES and (whole := f"{layer}.{_GATES_AND_UPS}.weight") in names:
            halves[whole].append((stacks[name], change))
        else:
            found[name] = change
    return found | {whole: _joined(whole, parts) for whole, parts in halves.items()}
