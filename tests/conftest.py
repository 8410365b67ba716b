"""For all floors: how properties are tested, real models, and the folder of extra conformance files.

What hypothesis tries is the same in every run, so that a test passes or fails by the code alone, not by chance or by
the clock. A longer random search stands beside it:

    HYPOTHESIS_PROFILE=search pytest -m hypothesis        # other examples in every run, ten times as many

Tests marked `thorough` try again, in other combinations, what others try: they wait for `pytest --all`.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

SEARCH_TIMES = 10
_NUMBERS = itertools.count()
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "gate")

settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(PROFILE)


# Where files are dealt out to several processes, those that take longest are begun first: begun last, one of them would
# keep its process busy while the others have nothing left to do.
LONGEST = ("kernels/test_compiler.py", "kernels/test_linear.py", "engine/test_real_equality.py",
           "kernels/test_objects.py", "kernels/test_kv_types.py", "kernels/test_attention.py", "kernels/test_neon.py",
           "engine/test_kv_types.py", "engine/sampling/test_steps.py", "engine/test_shifting.py",
           "kernels/test_backward_rows.py", "engine/test_real_models.py")  # fmt: skip
IS_ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ

# Programs that tests start by the hundred keep what Python made of the modules that they import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if IS_ONE_OF_SEVERAL:  # threads of torch and NumPy would wait for cores that the other processes have
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the thorough tests too")


def pytest_configure(config: pytest.Config) -> None:
    """Files are dealt out in their order, not by how many tests they have: a server lasts for all of its folder."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; and a search takes more examples of every property, whatever number its test names."""
    if not config.option.all:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("thorough")])
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    if IS_ONE_OF_SEVERAL:
        places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    if PROFILE != "search":
        return
    for item in items:
        test = getattr(item, "obj", None)
        if getattr(test, "is_hypothesis_test", False):
            few = test._hypothesis_internal_use_settings
            test._hypothesis_internal_use_settings = settings(few, max_examples=SEARCH_TIMES * few.max_examples)


@pytest.fixture(autouse=True)
def _prefixes_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts are kept on disk: what other tests have left there is not found, and nothing is left for them."""
    if disk_cache := sys.modules.get("edgellm.engine.disk_cache"):
        folder = tmp_path_factory.getbasetemp() / "prefixes" / str(next(_NUMBERS))
        monkeypatch.setattr(disk_cache, "prefixes_folder", lambda: folder)


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may run beside this one: nothing is measured again in its midst because they have come to an end."""
    if tuner := sys.modules.get("edgellm.graph.tuner"):
        monkeypatch.setattr(tuner, "_is_busy", lambda minute: True)


@pytest.fixture(autouse=True)
def _usual_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are loaded here are tiny: to measure what is quickest would take longer than most tests."""
    if runner := sys.modules.get("edgellm.engine.runner"):
        monkeypatch.setattr(runner, "measure_and_remember", _not_measured)


def _not_measured(store: Any, weights: Any, n_threads: int | None = None, progress: Any = None) -> Any:
    from edgellm.graph import Tuning
    from edgellm.machine import default_threads

    return Tuning(n_threads or default_threads())


def _heed_ignored_signals() -> None:
    """Let the programs that tests start begin with the default for every signal, however the run was started.

    `nohup` and background jobs of a script start a run that ignores some, and what it starts inherits that. A
    handler is not inherited. This one does nothing, so the run itself goes on as if the signal were ignored.
    """
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_heed_ignored_signals()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of extra conformance files: $EDGELLM_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("EDGELLM_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"extra conformance files are not here ({folder}); EDGELLM_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, 98 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M in Q4_K_M, 253 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("gemma3-270m")


def _pulled(name: str) -> Path:
    from edgellm import hub

    return hub.pull(name)


@pytest.fixture
def kernels_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels stay where they are, whatever home a test is given after this: to compile them takes seconds."""
    from edgellm.files import kernels_folder
    from edgellm.kernels import store

    folder = kernels_folder()
    monkeypatch.setattr(store, "kernels_folder", lambda: folder)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """A random Llama of two layers, with a context of 1,024 tokens."""
    from tests.arch import tiny

    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def model(tiny_path):
    """The same, loaded."""
    import edgellm

    with edgellm.load(tiny_path, n_threads=2, disk_bytes=0) as loaded:
        yield loaded


@pytest.fixture(autouse=True, scope="session")
def _no_prefixes_on_disk():
    """Tests leave no keys and values in the user's own folders; those that want some say where."""
    from edgellm.engine import disk_cache

    folder = disk_cache.prefixes_folder
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.setattr(disk_cache, "prefixes_folder", lambda: Path(place) / "prefixes")
        yield folder
