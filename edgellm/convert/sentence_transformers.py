"""What a folder of Sentence Transformers says beside its model: pooling, dense layers, prompts (modules.json)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.convert.parts import Part
from edgellm.engine.pooling import POOLINGS
from edgellm.engine.tasks import DEFAULT_KEY, KEY
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.json_file import read_json, read_json_list
from edgellm.formats.settings import Settings

_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
_ACTIVATIONS = {"Identity": "", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu_erf", "SiLU": "silu"}


@dataclass
class Modules:
    """pooling: by its name; None where the folder does not say it.

    metadata:  keys for the file, whole. parts: the dense layers.
    """

    pooling: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def with_family(self, architecture: str) -> dict[str, Any]:
        """The metadata for a file of a family."""
        own = {} if self.pooling is None else {f"{architecture}.pooling_type": POOLINGS.index(self.pooling)}
        return own | self.metadata


def read_modules(folder: Path, opened: Any) -> Modules:
    """What modules.json and the files that it names say; nothing of a folder that is none of Sentence Transformers.

    opened: an ExitStack that keeps the weights of dense layers open.
    Raises FormatError, or UnsupportedError naming a step that edgellm lacks.
    """
    result = Modules()
    if not (folder / "modules.json").is_file():
        return result
    steps = read_json_list(folder / "modules.json")
    if not all(isinstance(step, dict) for step in steps):
        raise FormatError("modules.json is no list of modules; expected what Sentence Transformers writes")
    for number, step in enumerate(steps):
        kind = str(step.get("type", "")).rpartition(".")[2]
        place = _inside(folder, step.get("path", ""))
        if kind == "Pooling":
            result.pooling = _pooling(place)
        elif kind == "Dense":
            if result.pooling is None:
                raise UnsupportedError("modules.json: a Dense module before pooling makes vectors of single tokens, "
                                       "for late interaction; edgellm makes one of a text")  # fmt: skip
            _add_dense(result, place, opened)
        elif kind not in ("Transformer", "Normalize") or (kind == "Transformer") != (number == 0):
            raise UnsupportedError(f"modules.json: module {number} is {kind or step!r:.60}; edgellm converts "
                                   "Transformer, Pooling, Dense and Normalize")  # fmt: skip
    _add_prompts(result, folder)
    _note_length(result, folder)
    return result


def _inside(folder: Path, name: Any) -> Path:
    """A module's own folder. Raises FormatError for a name that leads out of the checkpoint."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts or ":" in name:
        raise FormatError(
            f"modules.json: the path {name!r:.60} leads out of the folder; expected a name such as 1_Pooling"
        )
    return folder / name


def _pooling(place: Path) -> str:
    s = Settings(read_json(place / "config.json"), file=f"{place.name}/config.json")
    if s.get("include_prompt", True) is not True:
        raise UnsupportedError(f"{s.file}: include_prompt is false; edgellm pools all tokens of a text")
    if isinstance(mode := s.get("pooling_mode"), str):  # as newer versions say it
        found = {"lasttoken": "last"}.get(mode, mode)
        on = [found]
    else:
        on = [_MODES.get(key, key) for key, is_on in s.values.items() if key.startswith("pooling_mode_") and is_on]
    if len(on) != 1 or on[0] not in POOLINGS:
        raise UnsupportedError(
            f"{s.file}: pooling by {', '.join(on) or 'nothing'}; edgellm knows one of mean, cls, last"
        )
    return on[0]


def _add_dense(result: Modules, place: Path, opened: Any) -> None:
    """A linear layer, with its bias and activation, under the names that llama.cpp has for the first two."""
    name = f"dense_{len([part for part in result.parts if part.name.endswith('.weight')]) + 2}"
    s = Settings(read_json(place / "config.json"), file=f"{place.name}/config.json")
    if name not in ("dense_2", "dense_3"):
        raise UnsupportedError("modules.json has more than two Dense modules; edgellm converts two")
    activation = str(s.get("activation_function", "")).rpartition(".")[2] or "Tanh"
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(f"{s.file}: activation_function is {activation!r:.60}; edgellm knows "
                               f"{', '.join(_ACTIVATIONS)}")  # fmt: skip
    tensors = dict(opened.enter_context(open_checkpoint(place)).tensors)
    for ending in ("weight", "bias"):
        tensor = tensors.pop(f"linear.{ending}", None)
        if tensor is not None:
            result.parts.append(Part(f"{name}.{ending}", tensor))
    if tensors or not result.parts or not result.parts[-1].name.startswith(name):
        raise FormatError(
            f"{place.name} holds {', '.join(tensors) or 'no tensors'}; expected linear.weight and its bias"
        )
    if _ACTIVATIONS[activation]:
        result.metadata[f"edgellm.{name}.activation"] = _ACTIVATIONS[activation]


def _add_prompts(result: Modules, folder: Path) -> None:
    if not (folder / "config_sentence_transformers.json").is_file():
        return
    s = Settings(read_json(folder / "config_sentence_transformers.json"), file="config_sentence_transformers.json")
    if (measure := s.get("similarity_fn_name", "cosine")) not in ("cosine", "dot"):
        result.notes.append(f"{s.file}: vectors are compared by {measure!r:.40}; `rank` compares them by their cosines")
    prompts = s.section("prompts").values
    if wrong := [name for name, text in prompts.items() if not isinstance(text, str)]:
        raise FormatError(f"{s.file}: the prompt {wrong[0]!r:.60} is {prompts[wrong[0]]!r:.60}; expected a text")
    result.metadata |= {KEY + name: text for name, text in prompts.items()}
    default = s.get("default_prompt_name")
    if default is not None:
        if default not in prompts:
            raise FormatError(f"{s.file}: default_prompt_name is {default!r:.60}, which prompts does not have")
        result.metadata[DEFAULT_KEY] = default


def _note_length(result: Modules, folder: Path) -> None:
    if (folder / "sentence_bert_config.json").is_file():
        s = Settings(read_json(folder / "sentence_bert_config.json"), file="sentence_bert_config.json")
        if s.get("max_seq_length") is not None:
            result.notes.append(
                f"Sentence Transformers cuts texts to {s.count('max_seq_length')} tokens (max_seq_length); edgellm "
                "takes as many as the model has positions for, and says so where a text has more"
            )
