"""A GGUF file as a Hugging Face folder, which `transformers` loads: safetensors, config.json, tokenizer.

The way back of `edgellm.convert.huggingface`, told by the same descriptions of the families. Quantized weights
become floats; what quantizing lost stays lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgellm import checks
from edgellm.arch import ModelConfig, architecture_of
from edgellm.arch.adapters import read_adapter, save_adapter
from edgellm.arch.huggingface import HuggingFace, decoder_settings
from edgellm.arch.huggingface_rope import llama3_settings
from edgellm.convert.experts import is_stack, unstacked
from edgellm.convert.huggingface import read_huggingface
from edgellm.convert.model_card import write_model_card
from edgellm.convert.rows import check_finite
from edgellm.convert.targets import check_folder
from edgellm.convert.vocabulary import write_tokenizer
from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.files import AnyPath, check_room, refuse_target, rename
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.safetensors import write_safetensors
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS, BlockFormat

DTYPES = {"f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16"), "f32": ("F32", "float32")}
CHUNK_WEIGHTS = 1 << 24  # converted at a time


def export_checkpoint(
    source: AnyPath,
    folder: AnyPath,
    dtype: str = "bf16",
    progress: Callable[[int, int, str], None] | None = None,
    *,
    base: AnyPath | None = None,
) -> None:
    """Write the folder, which must not exist yet or be empty; on any error nothing of it is left.

    dtype:     of the weights: "f16", "bf16" or "f32". An adapter becomes one of PEFT, in float32.
    base:      of an adapter: the GGUF file of the model that it was made for.
    progress:  (bytes done, bytes in all, what).

    Raises FileProblem for a file that cannot be exported, UsageError for a folder that holds something.
    """
    source, folder = checks.path("source", source), checks.path("folder", folder)
    base = None if base is None else checks.path("base", base)
    dtype = checks.one_of("dtype", dtype, tuple(DTYPES))
    report = checks.function("progress", progress) or (lambda done, total, what: None)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another name")
    if not folder.exists():
        refuse_target(folder)
    check_folder(folder)
    with GGUFFile.open(source) as file:
        if file.get("general.type", str, "model") == "adapter":
            _export_adapter(source, folder, base)
            return
        if base is not None:
            raise UsageError(f"{source} is no adapter, which is made for another model (--base)", parameter="base")
        try:
            config, tensors = _plan(file, dtype)
        except FileProblem as problem:
            raise type(problem)(f"{source}: {problem}") from None
        try:
            check_room(
                folder, sum(prod(tensor.shape) * FORMATS[DTYPES[dtype][0]].block_bytes for _, tensor, *_ in tensors)
            )
            with _atomic_folder(folder) as work:
                (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                write_tokenizer(file.metadata, work)
                write_model_card(file.metadata, work)
                _write_weights(work, tensors, dtype, lambda done, total: report(done, total, f"writing {folder}"))
                _read_again(work, folder)
        except OSError as problem:
            raise FileProblem(f"{folder} cannot be written: {problem.strerror or problem}") from None


def _export_adapter(source: Path, folder: Path, base: Path | None) -> None:
    """A GGUF adapter as a folder of PEFT."""
    if base is None:
        raise UsageError(
            f"{source} is an adapter; name the GGUF file of the model that it was made for (--base)", parameter="base"
        )
    with GGUFFile.open(base) as model:
        adapter = read_adapter(source, model.metadata, model.tensors)
        try:
            with _atomic_folder(folder) as work:
                save_adapter(work, adapter, model.metadata)
        except OSError as problem:
            raise FileProblem(f"{folder} cannot be written: {problem.strerror or problem}") from None


def _read_again(work: Path, folder: Path) -> None:
    """Raise FileProblem when the folder, under the name that it has while it is written, is no checkpoint."""
    try:
        read_huggingface(work).close()
    except FileProblem as problem:
        reason = str(problem).removeprefix(f"{work}: ")
        raise type(problem)(f"{folder}: what was written cannot be read again, so it was not kept: {reason}") from None


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; it takes the name of `folder` only when the block succeeds, and is removed otherwise.

    A `folder` that is there, empty, stays the same folder: it may be a mount, a link or where the user stands.
    """
    real = Path(os.path.realpath(folder))
    was_there = real.exists()
    work = (real if was_there else real.parent) / f".{real.name[:32]}.{secrets.token_hex(8)}"
    moved: list[Path] = []
    try:
        work.mkdir(parents=True)
        yield work
        if not was_there:
            rename(work, real)
            return
        for file in sorted(work.iterdir()):
            moved.append(real / file.name)
            rename(file, moved[-1])
        work.rmdir()
    except BaseException:
        for file in moved:
            file.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        raise


def _plan(file: GGUFFile, dtype: str) -> tuple[dict[str, Any], list[tuple[str, Tensor, Any, float]]]:
    """config.json, and the tensors: (their name there, the file's tensor, its order of rows, what to take off)."""
    entry = architecture_of(file.metadata)
    if file.get("general.type", str, "model") != "model":
        raise UnsupportedError(f"the file holds a {file.metadata['general.type']!r:.40}; export takes whole models")
    c = entry.configure(file.metadata)
    entry.check(c, file.tensors)
    family = next((family for family in entry.hugging_face if family.fits(c)), None)
    if family is None:
        raise UnsupportedError(
            f"transformers has no model of the kind {c.architecture} with windows in some layers only"
        )
    if c.value_dim != c.head_dim:
        raise UnsupportedError(f"transformers has no {c.architecture} with keys and values of different widths")
    if family.settings is None:
        raise UnsupportedError(f"exporting models of the kind {c.architecture} is not built yet")
    names = dict(family.names(c.n_layers))
    tensors: list[tuple[str, Tensor, Any, float]] = []
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue  # part of config.json
        if is_stack(family, name):
            tensors += [(theirs, matrix, None, 0.0) for theirs, matrix in unstacked(family, name, tensor)]
            continue
        if name not in names:
            raise UnsupportedError(f"{family.classes[0]} has no place for tensor {name!r}")
        order = family.row_order(name, c)
        back = None if order is None else np.argsort(order).astype(np.int32)
        tensors.append((names[name], tensor, back, -family.offset(name)))
    return _config(file, family, c, dtype), tensors


def _config(file: GGUFFile, family: HuggingFace, c: ModelConfig, dtype: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [family.classes[0]],
        "model_type": family.model_type,
        **(family.settings or decoder_settings)(c),
        **_rope(file, c),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": DTYPES[dtype][1],
    }
    if isinstance(name := file.metadata.get("general.name"), str):
        config["_name_or_path"] = name
    for key in dict.fromkeys(family.biases.values()):
        linears = [part for part, its_key in family.biases.items() if its_key == key]
        has = {f"blk.{layer}.{part}.bias" in file.tensors for layer in range(c.n_layers) for part in linears}
        if has != {True} and (key is None or True in has):
            raise UnsupportedError(f"{family.classes[0]} has biases on all of {', '.join(linears)}, in every layer")
        if key is not None:
            config[key] = True in has
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"tokenizer.ggml.{key}_token_id" in file.metadata:
            config[f"{role}_token_id"] = file.get(f"tokenizer.ggml.{key}_token_id", int)
    return config


def _rope(file: GGUFFile, c: ModelConfig) -> dict[str, Any]:
    """Rotary embedding in the form that old and new versions of transformers read."""
    rope: dict[str, Any] = {"rope_theta": c.rope_base}
    if c.rope_base_local is not None:
        rope["rope_local_base_freq"] = c.rope_base_local
    if "rope_freqs.weight" in file.tensors:
        scaling = llama3_settings(file.tensors["rope_freqs.weight"].dequantize(), c.rope_base)
        rope["rope_scaling"] = {key: value for key, value in scaling.items() if key != "rope_theta"}
    elif c.scaling.kind != "none" or c.scaling.magnitude != 1:
        rope["rope_scaling"] = _scaling(c)
    return rope


def _scaling(c: ModelConfig) -> dict[str, Any]:
    """Raises UnsupportedError for what transformers has no words for."""
    scaling = c.scaling
    if scaling.kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.n_ctx_original,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.magnitude * scaling.yarn_magnitude,
        }
    is_usual = scaling.magnitude == 1 and (scaling.kind != "dynamic" or scaling.n_ctx_original == c.n_ctx_train)
    if scaling.kind not in ("linear", "dynamic") or not is_usual:
        raise UnsupportedError(f"exporting rope scaling of type {scaling.kind!r} with these numbers is not built yet")
    return {"rope_type": scaling.kind, "factor": scaling.factor}


def _write_weights(
    folder: Path, tensors: list[tuple[str, Tensor, Any, float]], dtype: str, progress: Callable[[int, int], None]
) -> None:
    target = FORMATS[DTYPES[dtype][0]]
    total = sum(tensor.n_bytes for _, tensor, _, _ in tensors)
    done = 0

    def chunks(tensor: Tensor, order: Any, offset: float) -> Iterator[Any]:
        nonlocal done
        for rows in _rows(tensor, order):
            yield _converted(tensor, rows, target, offset)
            done += rows.nbytes
            progress(done, total)

    def source(tensor: Tensor, order: Any, offset: float) -> Callable[[], Iterator[Any]]:
        return lambda: chunks(tensor, order, offset)

    write_safetensors(folder, [(name, tensor.shape, target, source(tensor, order, offset))
                               for name, tensor, order, offset in tensors])  # fmt: skip


def _converted(tensor: Tensor, rows: Any, target: BlockFormat, offset: float) -> Any:
    """Some rows of a tensor in another format. Raises FormatError naming it for numbers that are none, or too large."""
    try:
        x = tensor.format.dequantize(rows)
        check_finite(x)
        return target.quantize(x + np.float32(offset))
    except FormatError as problem:
        raise FormatError(f"tensor {tensor.name!r}: {problem}") from None


def _rows(tensor: Tensor, order: Any) -> Iterator[Any]:
    """The tensor's bytes, some rows at a time, in the given order."""
    if order is not None and tensor.raw.ndim == 1:  # a bias: every number is a row
        yield tensor.raw.reshape(len(order), -1)[order].reshape(-1)
        return
    if tensor.raw.ndim == 1:
        yield tensor.raw
        return
    at_once = max(1, CHUNK_WEIGHTS // tensor.shape[-1])
    for start in range(0, len(tensor.raw), at_once):
        some = slice(start, start + at_once)
        yield tensor.raw[some] if order is None else tensor.raw[order[some]]
