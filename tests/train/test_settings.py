"""Settings of a run: what may be said of each, and files of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, UsageError
from edgellm.train.config import FullConfig, LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.preference.config import GrpoConfig, PpoConfig
from edgellm.train.settings import WHERE, as_settings, made, read_settings, write_settings
from tests.test_params import ODD

KINDS = (LoraConfig, TrainConfig, DataConfig)


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str | bytes) -> dict[str, Any]:
        path = tmp_path / "a.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_settings(path, KINDS)

    return read


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("validation: 0.25", {"validation": 0.25}),
        ("validation: '12'", {"validation": 12}),
        ("validation: held.jsonl", {"validation_data": ["held.jsonl"]}),
        ("validation: [a.jsonl, b.jsonl]", {"validation_data": ["a.jsonl", "b.jsonl"]}),
        ("validation: 3\nvalidation_data: a.jsonl", {"validation": 3, "validation_data": ["a.jsonl"]}),
        ("rslora: true", {"use_rslora": True}),
        ("r: 4\nlora_alpha: 8\nlora_dropout: 0.1", {"rank": 4, "alpha": 8, "dropout": 0.1}),
        ("dora: true", {"method": "dora"}),
        ("use_dora: true\nmethod: lora", {"method": "dora"}),
        ("method: dora\nuse_dora: true", {"method": "dora"}),
        ("use_dora: false", {}),
        ("use_dora: false\nmethod: prompt", {"method": "prompt"}),
    ],
)
def test_what_has_the_name_of_an_option_is_what_the_option_may_be(read, tmp_path: Path, text: str, found) -> None:
    assert read(text) == found
    write_settings(tmp_path / "b.yaml", {"validation": 0.0, **found})
    again = read_settings(tmp_path / "b.yaml", KINDS)
    assert {"validation": 0.0, **again} == {"validation": 0.0, **found}
    if "validation_data" in found and "validation" not in found:
        assert "validation_data" not in (tmp_path / "b.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("validation: []", "line 1: validation is []"),
        ("validation: -1", "line 1: validation is -1"),
        ("validation: a\nvalidation_data: b", "line 2: validation_data stands there twice"),
        ("rslora: 3", "line 1: rslora is 3; expected True or False"),
        ("use_rslora: true\nrslora: true", "line 2: rslora stands there twice"),
        ("rank: 4\nr: 4", "line 2: r stands there twice"),
        ("r: four", "line 1: r is 'four'; expected a whole number"),
        ("dora: 1", "line 1: dora is 1; expected True or False"),
        ("dora: true\nuse_dora: true", "line 2: use_dora stands there twice"),
        ("dora: true\nmethod: prompt", "line 1: dora is true, and method is 'prompt'; choose one"),
        ("method: dora\nuse_dora: false", "line 2: use_dora is false, and method is 'dora'; choose one"),
        ("bias: all", "line 1: 'bias' is no setting: it is PEFT's, and edgellm trains without it; leave it out"),
        ("lr: 1e-3", "line 1: 'lr' is no setting; did you mean learning_rate?"),
        ("num_train_epochs: 3", "line 1: 'num_train_epochs' is no setting; did you mean epochs?"),
        ("dropuot: 3", "line 1: 'dropuot' is no setting; did you mean dropout?"),
    ],
)
def test_what_it_may_not_be_is_said_by_its_name(read, text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        read(text)
    assert line in str(error.value)


@pytest.mark.parametrize("name", ["dora", "use_dora", "r", "lora_alpha", "rslora"])
def test_names_of_small_weights_mean_nothing_where_all_weights_are_trained(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(UsageError, match=f"line 1: '{name}' is no setting"):
        read_settings(tmp_path / "a.yaml", (FullConfig, TrainConfig))


@pytest.mark.parametrize("value", [5, True, None, {"token_embd": 1}, [""], [3]])
def test_what_is_to_stay_as_it_is_must_be_named(value: Any) -> None:
    """A number or a flag froze nothing, without a word."""
    with pytest.raises(UsageError, match="freeze is "):
        FullConfig(freeze=value)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"method": "ia3"}, "method is 'ia3'; expected one of lora, dora"),
        ({"rank": 0}, "rank is 0; expected a number of at least 1"),
        ({"alpha": 0}, "alpha is 0.0; expected a number above 0"),
        ({"alpha": 1e-320}, "alpha is 1e-320; expected a number of at least 1e-09"),
        ({"dropout": 1}, "dropout is 1.0; expected a number from 0 up to, but not including, 1"),
        ({"target_modules": []}, 'target_modules is []; expected "all-linear" or names of layers'),
        ({"target_modules": ["a", 5]}, "target_modules is 5; expected a text (str)"),
        ({"target_modules": "all-linear,a"}, "target_modules is ['all-linear', 'a']; expected \"all-linear\" alone"),
        ({"use_rslora": 1}, "use_rslora is 1; expected True or False"),
    ],
)
def test_what_is_said_of_lora(params, text: str) -> None:
    with pytest.raises(UsageError) as error:
        LoraConfig(**params)
    assert str(error.value).startswith(text) and error.value.parameter == next(iter(params))


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"epochs": 0}, "epochs is 0.0; expected a number above 0"),
        ({"epsilon": 1e300}, "epsilon is 1e+300; expected a number above 0, up to 1e+06"),
        ({"epsilon": 1e-320}, "epsilon is 1e-320; expected a number of at least 1e-30"),
        ({"clip": 1e-300}, "clip is 1e-300; expected 0, or a number of at least 1e-06, for no gradient would be left"),
        ({"steps": 1.5}, "steps is 1.5; expected a whole number"),
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'; expected a number"),
        ({"warmup": 1.5}, "warmup is 1.5; expected a share below 1, or a whole number"),
        ({"warmup": -1}, "warmup is -1.0; expected a number of at least 0"),
        ({"betas": 0.9}, "betas is 0.9; expected two numbers"),
        ({"betas": (0.9, 1)}, "betas is (0.9, 1); expected two numbers from 0"),
        ({"schedule": "step"}, "schedule is 'step'; expected one of cosine, linear, constant"),
        ({"precision": "bf16"}, "precision is 'bf16'; expected one of float32, mixed"),
        ({"seed": -1}, "seed is -1; expected a number of at least 0"),
        ({"patience": 0}, "patience is 0; expected a number of at least 1"),
    ],
)
def test_what_is_said_of_training(params, text: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**params)
    assert str(error.value).startswith(text) and error.value.parameter == next(iter(params))


@pytest.mark.parametrize(("kind", "name"), [(kind, f.name) for kind in (LoraConfig, TrainConfig) for f in fields(kind)])
def test_any_value_is_taken_or_refused_by_name(kind: type, name: str) -> None:
    def check(value: Any) -> None:
        try:
            found = getattr(kind(**{name: value}), name)
        except UsageError as error:
            assert error.parameter == name and str(error).startswith(f"{name} is ") and "\n" not in str(error)
        else:
            assert type(found) in (int, float, bool, str, tuple) or found is None

    for odd in ODD:
        for value in (odd, (odd, odd), [odd]):
            check(value)


def test_scales() -> None:
    assert (LoraConfig().scale, LoraConfig(rank=16, alpha=8).scale) == (2.0, 0.5)
    assert LoraConfig(rank=16, alpha=8, use_rslora=True).scale == 2.0
    assert (LoraConfig().use_dora, LoraConfig(method="dora").use_dora) == (False, True)
    assert LoraConfig(target_modules="q_proj, v_proj").target_modules == ("q_proj", "v_proj")


def test_a_file_of_all_kinds_of_values(read) -> None:
    found = read(
        "# my run\nmodel: smollm2-135m\ndata: a.jsonl\nrank: 16\nlearning_rate: 1e-4\nbetas: [0.9, .95]\n"
        "target_modules:\n  - q_proj\n  - 'no'\nuse_rslora: true\nsteps: null\nepochs: 010\nschedule: \"linear\"\n"
    )
    assert found == {
        "model": "smollm2-135m", "data": ["a.jsonl"], "rank": 16, "learning_rate": 1e-4, "betas": [0.9, 0.95],
        "target_modules": ["q_proj", "no"], "use_rslora": True, "steps": None, "epochs": 10, "schedule": "linear",
    }  # fmt: skip
    assert made(TrainConfig, found) == TrainConfig(learning_rate=1e-4, betas=(0.9, 0.95), epochs=10, schedule="linear")
    assert made(LoraConfig, found) == LoraConfig(rank=16, target_modules=("q_proj", "no"), use_rslora=True)


def test_an_empty_file_changes_nothing(read) -> None:
    assert read("") == read("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rank: 8\nlearnin_rate: 1", ", line 2: 'learnin_rate' is no setting; did you mean learning_rate?"),
        ("batch-size: 8", ", line 1: 'batch-size' is no setting; did you mean batch_size?"),
        ("zzz: 8", ", line 1: 'zzz' is no setting; there are method, rank"),
        ("rank: 8\nrank: 8", ", line 2: rank stands there twice"),
        ("rank: eight", ", line 1: rank is 'eight'; expected a whole number"),
        ("rank: 1e3", ", line 1: rank is 1000.0; expected a whole number"),
        ("rank:", ", line 1: rank is None; expected a whole number"),
        ("epochs: .nan", ", line 1: epochs is '.nan'; expected a number"),
        ("seed: " + "9" * 5000, ", line 1: seed is '999"),
        ("data: 5", ", line 1: data is 5; expected a list of texts"),
        ("data: []", ", line 1: data is []; expected at least one file"),
        ("model: [a, b]", ", line 1: model is ['a', 'b']; expected a text"),
        ("rank: {a: 1}", ", line 1: rank is {'a': 1}; expected a whole number"),
        ("betas: [[1], 2]", ", line 1: betas is [[1], 2]; expected two numbers"),
        ("template_variables: {a: 1, a: 2}", ": line 1: a name stands there twice"),
        ("template_variables: 5", ", line 1: template_variables is 5; expected a dict"),
        ("rank: 8\na: &a [*a]", " is no YAML: line 2: aliases (*) are not read"),
        ("a: &a [x, x]\nb: &b [*a, *a]", " is no YAML: line 2: aliases (*) are not read"),
        ("rank: !!python/object:os.system 8", ": line 1 holds the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("rank: !mine 8", ": line 1 holds the tag '!mine'; expected a plain value"),
        ("- rank", ": it holds no settings; expected lines such as `rank: 8`"),
        ("rank: [", " is no YAML: line 1: "),
        ("rank: 8\n  b: 9", " is no YAML: line 2: "),
        (b"rank: \xff", " is no YAML: byte 6 is not UTF-8"),
        ("[" * 100_000, " is no YAML: it is nested too deeply"),
        ("rank: 8\n---\nrank: 9", " is no YAML: line 2: "),
        (b"rank: 8 #" + b"a" * (1 << 20), " has more than 1048576 bytes, too many for settings"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_a_file_cannot_hold(read, tmp_path: Path, text: str | bytes, line: str) -> None:
    with pytest.raises(EdgellmError) as error:
        read(text)
    assert str(error.value).startswith(f"{tmp_path / 'a.yaml'}{line}") and "\n" not in str(error.value)
    assert error.value.parameter is None  # it was not typed as an option


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="No such file"):
        read_settings(tmp_path / "no.yaml", KINDS)


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("settings") / "a.yaml"
    path.write_bytes(data)
    try:
        found = read_settings(path, KINDS)
    except EdgellmError as error:
        assert "\n" not in str(error)
    else:
        assert found.keys() <= as_settings(*(kind() for kind in KINDS)).keys() | set(WHERE)


NAMES = st.text(min_size=1).filter(lambda name: "," not in name and name.strip() == name and max(name) < "\ud800")


@given(
    lora=st.builds(
        LoraConfig,
        method=st.sampled_from(["lora", "dora"]),
        alpha=st.floats(1e-9, 1e6),
        dropout=st.floats(0, 1, exclude_max=True),
        target_modules=st.lists(NAMES, min_size=1).map(tuple),
        use_rslora=st.booleans(),
    ),
    config=st.builds(
        TrainConfig,
        learning_rate=st.floats(1e-12, 1),
        betas=st.tuples(*2 * [st.floats(0, 1, exclude_max=True)]),
        seed=st.integers(0, 2**63 - 1),
        steps=st.none() | st.integers(1, 10**8),
    ),
    examples=st.builds(
        DataConfig,
        max_length=st.integers(2, 10**6),
        template_variables=st.dictionaries(NAMES, st.booleans() | NAMES | st.integers(), max_size=3),
    ),
    model=st.text(min_size=1),
    data=st.lists(st.sampled_from(["a.jsonl", "no", "1e5", "~", "a: b", "#x", "ä b", "-", "'", "null", "12", "a\nb"]),
                  min_size=1),
)  # fmt: skip
def test_what_is_written_is_read_again(tmp_path_factory, lora, config, examples, model: str, data: list[str]) -> None:
    path = tmp_path_factory.mktemp("settings") / "a.yaml"
    settings = {"model": model, "data": data, **as_settings(lora, config, examples)}
    write_settings(path, settings)
    found = read_settings(path, KINDS)
    assert (made(LoraConfig, found), made(TrainConfig, found), made(DataConfig, found)) == (lora, config, examples)
    assert (found["model"], found["data"]) == (model, data)
    of_others = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {**of_others, "betas": tuple(of_others["betas"])} == {**found, "betas": tuple(found["betas"])}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (TrainConfig, "epochs", 1e300), (TrainConfig, "epochs", 10**400), (TrainConfig, "steps", 10**12),
        (TrainConfig, "batch_size", 10**12), (TrainConfig, "accumulate", 10**12), (TrainConfig, "learning_rate", 1e38),
        (TrainConfig, "learning_rate", 1e-300), (TrainConfig, "learning_rate", float("nan")),
        (TrainConfig, "weight_decay", 1e9), (LoraConfig, "alpha", 1e300), (GrpoConfig, "num_generations", 10**9),
        (PpoConfig, "num_iterations", 10**9),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant(kind: type, name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is .*; expected a "):
        kind(**{name: value})


def test_epochs_are_told_against_the_data() -> None:
    TrainConfig(epochs=1e6).check_length(100)
    TrainConfig(epochs=1e6, steps=5).check_length(10**6)
    with pytest.raises(
        UsageError, match=r"^epochs is 1e\+06, which is 1e\+09 steps with this data; expected up to 100000"
    ):
        TrainConfig(epochs=1e6).check_length(1000)
