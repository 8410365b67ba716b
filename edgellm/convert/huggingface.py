"""A Hugging Face folder as metadata and tensors of a GGUF file."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.arch import ARCHITECTURES, ModelConfig
from edgellm.arch.config import MOST_LAYERS
from edgellm.arch.huggingface import HuggingFace, Settings, language_name, part_of
from edgellm.arch.huggingface_rope import rope_tensors
from edgellm.arch.registry import some_of
from edgellm.convert.encoder import check_padding, classes_of, prepare_encoder
from edgellm.convert.experts import take_experts
from edgellm.convert.model_card import model_card
from edgellm.convert.parts import Part, Transposed, with_columns
from edgellm.convert.promised import check_promises, in_their_names
from edgellm.convert.quantized import quantization_of, unpacked
from edgellm.convert.quantized.made import MadeTensor
from edgellm.convert.rows import PIECE_WEIGHTS, rows_of
from edgellm.convert.sentence_transformers import read_modules
from edgellm.convert.source import Source
from edgellm.convert.vocabulary import chat_templates, tokenizer_metadata
from edgellm.convert.vocabulary.generation_config import sampling_metadata
from edgellm.engine.pooling import makes_vectors_alone
from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.json_file import read_json
from edgellm.formats.tensor import Tensor

# Buffers that some checkpoints store and every program computes for itself.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.position_ids$|\.attention\.bias$")
# The rest of models that also see or hear.
_OTHER_SENSES = re.compile(r"(model\.)?(vision_tower|visual|audio_tower|multi_modal_projector|embed_vision)\.")


def read_huggingface(folder: Path, as_it_is: bool = True) -> Source:
    """Open a folder with config.json, tokenizer files and safetensors or PyTorch files.

    as_it_is:  whether weights that are quantized already shall keep their grid; otherwise they are dequantized.

    Everything that can be known before the weights are read is checked: the family, its hyperparameters, the
    tokenizer, the name and shape of every tensor. Raises FileProblem, FormatError or UnsupportedError.
    """
    with contextlib.ExitStack() as opened:
        try:
            config = read_json(folder / "config.json")
            architecture, family, settings = family_of(config)
            shape = family.hyperparameters(settings)
            modules = read_modules(folder, opened)
            checkpoint = opened.enter_context(open_checkpoint(folder))
            metadata: dict[str, Any] = {"general.architecture": architecture, "general.type": "model"}
            metadata |= model_card(folder, config)
            metadata |= {f"{architecture}.{key}": value for key, value in shape.items()}
            metadata |= modules.with_family(architecture) | classes_of(architecture, family, settings)
            held: Mapping[str, Tensor] = checkpoint.tensors
            others: Mapping[str, str] = checkpoint.others
            told: list[str] = []
            is_quantized = False
            if quantization := quantization_of(folder, config):
                arrays, told = unpacked(checkpoint, quantization, as_it_is)
                held, others, is_quantized = arrays.floats, arrays.others, arrays.has_unpacked
            tensors, notes = _language_tensors(held, others, family)
            notes += modules.notes
            if makes_vectors_alone(metadata):
                family, more = prepare_encoder(family, settings, tensors)
                notes += more
            else:
                notes += _tie(settings, tensors, family)
                notes += _without_foresight(settings, shape["block_count"], tensors)
            notes += _other_rows(settings, tensors, family)
            _leave_out_rows(tensors, family)
            _drop_empty_biases(family, settings, shape["block_count"], tensors)
            parts = _parts(architecture, family, settings, metadata, tensors, modules.parts)
            n_vocab = next(part.tensor.shape[0] for part in parts if part.name == "token_embd.weight")
            metadata |= {f"{architecture}.vocab_size": n_vocab} | tokenizer_metadata(folder, n_vocab, notes)
            notes += [*check_padding(family, settings, metadata), *chat_templates.faults(metadata)]
            metadata |= sampling_metadata(folder, notes)
            notes += _without_rows(metadata["tokenizer.ggml.tokens"][n_vocab:], n_vocab)
        except FileProblem as problem:
            raise type(problem)(f"{folder}: {str(problem).removeprefix(f'{folder}: ')}") from None
        source = Source(metadata, parts, [*told, *notes], opened.pop_all().close)
        source.keeps_types = is_quantized and as_it_is
        return source


def family_of(config: dict[str, Any]) -> tuple[str, HuggingFace, Settings]:
    """The GGUF architecture, the kind of checkpoint and its settings, by the class that config.json names."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise FormatError(f"config.json: architectures is {classes!r:.60}; expected a list with the model's class")
    for architecture, entry in ARCHITECTURES.items():
        for family in entry.hugging_face:
            if classes[0] in family.classes and family.has_config(config):
                text = Settings(config).section("text_config").values if "text_config" in config else config
                whole = {key: config[key] for key in ("tie_word_embeddings",) if config.get(key) is not None}
                if not entry.is_encoder and not text.get("is_causal", True):
                    raise UnsupportedError(
                        f"config.json: is_causal is {text['is_causal']!r:.40}: each token sees those behind it too; "
                        "edgellm runs this family with true, where it sees those before it"
                    )
                return architecture, family, family.settings_of(text | whole)
    known = [name for entry in ARCHITECTURES.values() for family in entry.hugging_face for name in family.classes]
    raise UnsupportedError(
        f"config.json: the model's class is {classes[0]!r:.60}; edgellm converts {some_of(classes[0], known)}"
    )


def _language_tensors(
    tensors: Mapping[str, Tensor], others: Mapping[str, str], family: HuggingFace
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the language model under the names that a text model has; notes on what is left out.

    others:  name -> type of what holds no floats: buffers, or signs of a quantized checkpoint, which is refused.
    """
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    n_other = sum(bool(_OTHER_SENSES.match(name)) for name in (*tensors, *others))
    for name, dtype in others.items():
        if not _BUFFERS.search(name) and not _OTHER_SENSES.match(name):
            raise UnsupportedError(
                f"tensor {name!r} is {dtype}; edgellm converts weights in F32, F16 and BF16, and others where "
                "config.json says how they are quantized (quantization_config)"
            )
    for name, tensor in tensors.items():
        plain = family.full_name(language_name(name))
        if _OTHER_SENSES.match(name) or _BUFFERS.search(plain):
            continue
        if plain in found:
            raise FormatError(f"tensors {origin[plain]!r} and {name!r} are the same weight of a text model")
        if 0 in tensor.shape:
            raise FormatError(f"tensor {name!r} has the shape {list(tensor.shape)}; no dimension may be 0")
        found[plain], origin[plain] = tensor, name
    notes = [f"left out {n_other} tensors of its image and audio parts: edgellm runs the text part"] if n_other else []
    return found, notes


def _without_foresight(settings: Settings, n_layers: int, tensors: dict[str, Tensor]) -> list[str]:
    """Take away the layers that foresee further tokens (multi-token prediction), and say so.

    They are behind the others and join two inputs (eh_proj); one that does not is a layer that nobody counts.
    """
    n_more = settings.count("num_nextn_predict_layers", 0, least=0)
    behind = (f"model.layers.{n_layers + layer}." for layer in range(min(n_more, MOST_LAYERS)))
    prefixes = tuple(prefix for prefix in behind if f"{prefix}eh_proj.weight" in tensors)
    left_out = [name for name in tensors if name.startswith((*prefixes, "mtp."))]
    for name in left_out:
        del tensors[name]
    what = f"left out {len(left_out)} tensors of the layers that foresee further tokens: edgellm does not run them"
    return [what] if left_out else []


def _tie(settings: Settings, tensors: dict[str, Tensor], family: HuggingFace) -> list[str]:
    """Take away the second copy of tied embeddings, under whichever of the two names they were stored.

    Two that differ stay, as in transformers 5, whatever config.json says; the note says so.
    """
    embedding, output = f"{family.tensors['token_embd']}.weight", f"{family.tensors.get('output', 'lm_head')}.weight"
    if not settings.flag("tie_word_embeddings"):
        if output not in tensors and embedding in tensors:
            raise FormatError(
                f"the checkpoint has no tensor {output!r}, and config.json does not say that it is tied to the "
                "embeddings (tie_word_embeddings); a file is missing, or config.json is wrong"
            )
        return []
    if embedding not in tensors and output in tensors:
        tensors[embedding] = tensors.pop(output)
    if output not in tensors:
        return []
    if not _same_weights(tensors[embedding], tensors[output]):
        return [
            f"config.json says that {output} is tied to {embedding} (tie_word_embeddings), but the two differ: "
            "both are kept, as transformers 5 does; version 4 leaves the first out"
        ]
    del tensors[output]
    return []


def _other_rows(settings: Settings, tensors: Mapping[str, Tensor], family: HuggingFace) -> list[str]:
    """A note on an embedding with more or fewer rows than config.json says: the weights are right, or the file is.

    Rows that only fill up are counted in vocab_size; `transformers` refuses a checkpoint of which that is not true.
    """
    said, tensor = settings.values.get("vocab_size"), tensors.get(f"{family.tensors['token_embd']}.weight")
    if type(said) is not int or tensor is None or said == (n_rows := tensor.shape[0]):
        return []
    extra = f"the {n_rows - said} behind them are kept too" if n_rows > said else "there are no tokens behind them"
    return [
        f"config.json says vocab_size {said}, but the embedding has {n_rows} rows, which count here: {extra}; one of "
        "the two may be of another model"
    ]


def _leave_out_rows(tensors: dict[str, Tensor], family: HuggingFace) -> None:
    """Embeddings of tokens that have none of layers: Gemma 3n's marks of images and sounds, which no text holds."""
    of_layers = tensors.get(f"{family.tensors.get('per_layer_token_embd')}.weight")
    for name in (f"{family.tensors['token_embd']}.weight", f"{family.tensors.get('output')}.weight"):
        tensor = tensors.get(name)
        if (
            of_layers is not None
            and tensor is not None
            and len(tensor.shape) == 2
            and len(of_layers.raw) < len(tensor.raw)
        ):
            n_rows = len(of_layers.raw)
            tensors[name] = Tensor(name, (n_rows, tensor.shape[1]), tensor.format, tensor.raw[:n_rows])


def _drop_empty_biases(family: HuggingFace, settings: Settings, n_layers: int, tensors: dict[str, Tensor]) -> None:
    """Take away biases of zeros, which some quantizers give to every linear, where the family has none."""
    wanted = {
        theirs
        for ours, theirs in family.names(n_layers)
        if ours.endswith(".bias") and ((key := family.biases.get(ours.split(".")[-2])) is None or settings.flag(key))
    }
    for name, tensor in list(tensors.items()):
        weight = tensors.get(f"{name.removesuffix('.bias')}.weight")
        is_of_quantized = name.endswith(".bias") and isinstance(weight, MadeTensor)
        if is_of_quantized and name not in wanted and not tensor.dequantize().any():
            del tensors[name]


def _without_rows(tokens: list[str], n_rows: int) -> list[str]:
    """A note on added tokens that the model was never given, such as a padding token of its training."""
    if not tokens:
        return []
    more = f" and {len(tokens) - 1} more" if len(tokens) > 1 else ""
    return [
        f"the added token {tokens[0]!r:.60}{more} is beyond the {n_rows} rows of the embedding: no answer can hold it, "
        "a prompt with it is refused, and llama.cpp does not load such a file"
    ]


def _same_weights(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    first, second = Part("", a), Part("", b)

    def are_same(rows: slice) -> bool:
        x, y = first.raw(rows), second.raw(rows)
        if a.format is b.format and np.array_equal(x, y):
            return True
        return np.array_equal(a.format.dequantize(x), b.format.dequantize(y))

    return all(map(are_same, rows_of(first, PIECE_WEIGHTS)))


def _parts(
    architecture: str,
    family: HuggingFace,
    settings: Settings,
    metadata: Mapping[str, Any],
    tensors: dict[str, Tensor],
    dense: Sequence[Part],
) -> list[Part]:
    """The tensors by GGUF's names, and more that have them already; checked by going through the forward pass."""
    entry = ARCHITECTURES[architecture]
    config = entry.configure(metadata)
    parts: list[Part] = []
    theirs: dict[str, str] = {}
    vectors = {ours.format(layer) for ours in family.vectors for layer in range(config.n_layers)}
    for ours, name in family.names(config.n_layers):
        tensor = _taken(family, ours, name, tensors)
        if tensor is not None:
            theirs[ours] = tensor.name if tensor.name.endswith(name) else name
            if ours in vectors:
                tensor = _as_vector(tensor)
            parts.append(_part(family, config, ours, tensor))
    stacks, their_names = take_experts(family, settings, config, tensors)
    parts += stacks
    theirs |= their_names
    if tensors and not theirs:
        expected = f"{family.tensors['token_embd']}.weight"
        raise UnsupportedError(
            f"none of the {len(tensors)} tensors has a name that {family.classes[0]} has: {next(iter(tensors))!r} is "
            f"the first, and {expected!r} one that is expected; save the model itself with save_pretrained, not what a "
            "program for training wraps it in"
        )
    try:
        check_promises(family, settings, config, metadata, theirs)
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise UnsupportedError(f"{family.classes[0]} has no place for tensor {next(iter(tensors))!r}{more}")
        for name, factors in rope_tensors(family.rope(settings), config.n_rot).items():
            parts.insert(0, Part(f"{name}.weight", Tensor.of(f"{name}.weight", factors)))
        parts += dense
        named = {part.name: part.tensor for part in parts}
        if makes_vectors_alone(metadata):
            entry.record_vectors(config, named)
        else:
            entry.check(config, named)
    except FileProblem as problem:
        message = in_their_names(str(problem), family, theirs, config.n_layers)
        raise type(problem)(message + _assumed(settings)) from None
    return parts


def _part(family: HuggingFace, config: ModelConfig, ours: str, tensor: Tensor) -> Part:
    """A tensor on its way to GGUF, in the order and the form that it has there."""
    change, columns = family.changed.get(part_of(ours)), family.column_orders(part_of(ours), config)
    part = Part(
        ours,
        tensor,
        family.row_order(ours, config),
        family.offset(ours),
        change=None if change is None else lambda rows, x: change(x),
    )
    return part if columns is None else with_columns(part, columns)


def _as_vector(tensor: Tensor) -> Tensor:
    """A tensor of one row as one of one dimension."""
    if len(tensor.shape) < 2 or any(size != 1 for size in tensor.shape[:-1]):
        return tensor
    return Tensor(tensor.name, tensor.shape[-1:], tensor.format, tensor.raw.reshape(-1))


def _taken(family: HuggingFace, ours: str, name: str, tensors: dict[str, Tensor]) -> Tensor | None:
    """What GGUF's tensor `ours` is made of, taken out of the checkpoint's; None where there is nothing."""
    if (part := ours.split(".")[-2]) in family.stacked:
        names = (name.replace("*", str(index)) for index in itertools.count())
        found = [tensors.pop(each).dequantize() for each in itertools.takewhile(lambda each: each in tensors, names)]
        numbered = re.compile(re.escape(name).replace(re.escape("*"), r"\d+"))
        if beyond := next(filter(numbered.fullmatch, tensors), None):
            missing = name.replace("*", str(len(found)))
            raise FormatError(f"the checkpoint has no tensor {missing!r}, and it has {beyond!r}")
        if len({x.shape for x in found}) > 1:
            raise FormatError(f"tensors {name!r} have different shapes")
        return Tensor.of(name, np.stack(found)) if found else None
    tensor = tensors.pop(name, None)
    # What quantizes puts a linear in the place of a Conv1D, so quantized weights lie as everywhere.
    lies_across = part in family.transposed and not isinstance(tensor, MadeTensor)
    if tensor is not None and lies_across and len(tensor.shape) == 2:
        return Transposed(tensor)
    if tensor is not None and part in family.squeezed and len(tensor.shape) == 3 and tensor.shape[1] == 1:
        n_cols, _, n_taps = tensor.shape
        return Tensor(tensor.name, (n_cols, n_taps), tensor.format, tensor.raw.reshape(n_cols, -1))
    return tensor


def _assumed(settings: Settings) -> str:
    """What an error about tensors may come from: sizes that config.json leaves out."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim")  # fmt: skip
    taken = [f"{name} is missing, so {settings.assumed[name]}" for name in sizes if name in settings.assumed]
    return f"; in config.json {', '.join(taken)} was taken, as transformers does" if taken else ""
