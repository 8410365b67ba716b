"""Sessions on disk: a text goes on where it was, to the token; what cannot be used is refused in one line."""

from __future__ import annotations

import os
import stat
import sys

import numpy as np
import pytest

import edgellm
from edgellm.engine import block_file, disk_cache
from edgellm.errors import FileProblem, FormatError, MemoryLimitError
from edgellm.files import prefixes_folder
from edgellm.kernels.records import KV_BLOCK
from tests.arch import tiny

PROMPT = [3 + i * i % 200 for i in range(300)]
KINDS = ["f16", "q8_0", "f32"]


def loaded(path, **options):
    return edgellm.load(path, **({"n_threads": 1, "disk_bytes": 0} | options))


def answer(model, prompt, **params):
    generation = model.generate(prompt, **({"temperature": 0.0, "max_tokens": 12} | params))
    list(generation)
    return generation


@pytest.fixture
def session(tiny_path, tmp_path):
    """A saved session of PROMPT and its answer."""
    path = tmp_path / "text.session"
    with loaded(tiny_path) as model:
        generation = answer(model, PROMPT)
        n = model.save_session(path, generation, note="so far")
        assert len(PROMPT) + 11 <= n <= len(PROMPT) + 12
    return path


@pytest.mark.parametrize("kv_type", KINDS)
def test_a_text_goes_on_where_it_was(tiny_path, tmp_path, kv_type) -> None:
    path = tmp_path / "text.session"
    with loaded(tiny_path, kv_type=kv_type) as model:
        first = answer(model, PROMPT)
        n = model.save_session(path, first)
        expected = answer(model, [*first.text_ids, 9, 8, 7])
    with loaded(tiny_path, kv_type=kv_type) as model:
        session = model.load_session(path)
        assert session.token_ids == first.text_ids[:n] and session.note == ""
        again = answer(model, [*first.text_ids, 9, 8, 7])
        assert again.token_ids == expected.token_ids
        assert again.stats.n_reused_tokens == n
        model._scheduler.update_requests()
        model._scheduler.prefixes.clear()
        assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


def test_windows_are_part_of_a_session(tmp_path) -> None:
    path, model_path = tmp_path / "text.session", tiny.gemma3().save(tmp_path / "gemma3.gguf")
    with loaded(model_path) as model:
        first = answer(model, PROMPT)
        n = model.save_session(path, first)
        expected = answer(model, [*first.text_ids, 9])
    with loaded(model_path) as model:
        model.load_session(path)
        again = answer(model, [*first.text_ids, 9])
        assert again.token_ids == expected.token_ids and again.stats.n_reused_tokens == n > 290


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_only_its_owner_can_read_it(session) -> None:
    assert stat.S_IMODE(os.stat(session).st_mode) == 0o600


def test_a_note_is_kept(tiny_path, session) -> None:
    with loaded(tiny_path) as model:
        assert model.load_session(session).note == "so far"


def test_what_is_not_in_the_cache_is_not_saved(tiny_path, tmp_path) -> None:
    with loaded(tiny_path) as model:
        assert model.save_session(tmp_path / "empty", PROMPT) == 0
        assert model.load_session(tmp_path / "empty").token_ids == []


def test_a_session_of_others_is_refused(tiny_path, session, tmp_path) -> None:
    other = tiny.llama(hidden_size=64, intermediate_size=64).save(tmp_path / "other.gguf")
    with loaded(other) as model, pytest.raises(FileProblem, match="from another model; it cannot be used here"):
        model.load_session(session)
    with (
        loaded(tiny_path, kv_type="q8_0") as model,
        pytest.raises(FileProblem, match=r"another kv_type \(f16, and here"),
    ):
        model.load_session(session)
    with loaded(tiny_path, n_ctx=64) as model:
        small = model._runner.cache
        held = small.sequence()
        held.reserve((small.n_free_blocks - 1) * KV_BLOCK)
        with pytest.raises(MemoryLimitError, match="no room"):
            model.load_session(session)
        held.release()


def test_another_version_is_refused(tiny_path, session, monkeypatch) -> None:
    monkeypatch.setattr("edgellm.engine.bound.__version__", "99")
    with loaded(tiny_path) as model, pytest.raises(FileProblem, match=r"another version of edgellm .*99"):
        model.load_session(session)


@pytest.mark.parametrize("share", [0, 0.00001, 0.001, 0.5, 0.99])
def test_a_session_that_is_cut_short_is_refused(tiny_path, session, share) -> None:
    data = session.read_bytes()
    session.write_bytes(data[: int(share * len(data))])
    with loaded(tiny_path) as model:
        with pytest.raises((FormatError, FileProblem), match=r"text\.session"):
            model.load_session(session)
        assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


def test_any_damage_is_seen(tiny_path, session) -> None:
    """Also in the header, whose numbers and words could be others and still be some, and in the note."""
    data = session.read_bytes()
    random = np.random.default_rng(1)
    places = [*range(40), *random.integers(40, block_file.ALIGN, 200), *random.integers(0, len(data), 40)]
    with loaded(tiny_path) as model:
        for place in [*places, data.index(b"so far"), data.index(b'"n_tokens": ') + 12]:
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(random.integers(8))
            session.write_bytes(damaged)
            with pytest.raises((FormatError, FileProblem), match=r"text\.session"):
                model.load_session(session)


def test_files_of_an_older_form_are_told(tiny_path, session) -> None:
    session.write_bytes(b"EDGELLMKV1\n\0" + session.read_bytes()[12:])
    with loaded(tiny_path) as model, pytest.raises(FileProblem, match="another version of edgellm"):
        model.load_session(session)


@pytest.mark.parametrize("content", [b"", b"text", b"EDGELLMKV1\n\0" + b"\xff" * 4, b"EDGELLMKV1\n\0\2\0\0\0{}"])
def test_what_is_no_session_is_refused(tiny_path, tmp_path, content) -> None:
    path = tmp_path / "no.session"
    path.write_bytes(content)
    with loaded(tiny_path) as model, pytest.raises(FileProblem, match=r"no\.session"):
        model.load_session(path)


def test_what_is_no_session_is_not_written_over(tiny_path, tmp_path) -> None:
    path = tmp_path / "text.session"
    with loaded(tiny_path) as model:
        for content in (b"a thesis", b"GGUF", b"E", b"EDGELLM"):
            path.write_bytes(content)
            with pytest.raises(FileProblem, match=r"text\.session is no session, and saving one there would overwrite"):
                model.save_session(path, PROMPT)
            assert path.read_bytes() == content
        for content in (b"", b"EDGELLMKV1\n\0 of an older version"):
            path.write_bytes(content)
            assert model.save_session(path, PROMPT) == 0
        assert model.save_session(path, PROMPT) == 0  # one session over another


def test_a_session_that_cannot_be_written_is_said_and_nothing_is_lost(tiny_path, session, monkeypatch) -> None:
    before = session.read_bytes()

    def full(*words, **more):
        raise OSError(28, "No space left on device")

    with loaded(tiny_path) as model:
        answer(model, PROMPT)
        monkeypatch.setattr("edgellm.engine.session.write_blocks", full)
        with pytest.raises(FileProblem, match="the session is not saved: No space left"):
            model.save_session(session, PROMPT)
    assert session.read_bytes() == before and len(list(session.parent.iterdir())) == 1


# --- prefixes on disk ----------------------------------------------------------------------------------------

LONG = [3 + i * i % 211 for i in range(900)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "prefixes_folder", lambda: tmp_path / "prefixes")
    return tmp_path / "prefixes"


def test_long_prefixes_are_there_after_a_restart(tiny_path, home) -> None:
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        expected = [answer(model, LONG), answer(model, [*LONG[:600], 5])]
        assert expected[0].stats.n_reused_tokens == 0
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        again = [answer(model, LONG), answer(model, [*LONG[:600], 5])]
        assert [g.token_ids for g in again] == [g.token_ids for g in expected]
        assert again[0].stats.n_reused_tokens == 14 * KV_BLOCK
        assert again[1].stats.n_reused_tokens >= 9 * KV_BLOCK
    if sys.platform != "win32":
        modes = {stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*.kv")}
        assert modes == {0o600} and stat.S_IMODE(home.stat().st_mode) == 0o700


def test_short_texts_and_who_wants_none_leave_nothing(tiny_path, home) -> None:
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        answer(model, LONG[:490])
    with loaded(tiny_path, disk_bytes=0) as model:
        answer(model, LONG)
    assert not home.exists()


def test_the_least_recently_used_go_when_there_is_no_room(tiny_path, home) -> None:
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        answer(model, LONG)
    size = sum(path.stat().st_size for path in home.rglob("*.kv"))
    for path in home.rglob("*.kv"):
        os.utime(path, (1, 1))
    with loaded(tiny_path, disk_bytes=size + 1000) as model:
        answer(model, LONG[::-1])
    assert sum(path.stat().st_size for path in home.rglob("*.kv")) <= size + 1000
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        assert answer(model, LONG[::-1]).stats.n_reused_tokens >= 512
        assert answer(model, LONG).stats.n_reused_tokens == 0


def test_a_damaged_prefix_is_computed_again(tiny_path, home) -> None:
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        expected = answer(model, LONG)
    for path in home.rglob("*.kv"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 4
        path.write_bytes(data)
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        again = answer(model, LONG)
        assert again.token_ids == expected.token_ids and again.stats.n_reused_tokens == 0
    with loaded(tiny_path, disk_bytes=1 << 30) as model:  # all of them were made anew, not only the first that was met
        assert answer(model, LONG).stats.n_reused_tokens == 14 * KV_BLOCK


def test_behind_a_damaged_prefix_only_damaged_ones_are_written_again(tiny_path, home, monkeypatch) -> None:
    monkeypatch.setattr(disk_cache, "SEGMENT", 2)
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        answer(model, LONG)
    files = sorted(home.rglob("*.kv"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 7
    for n, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[-5] ^= 4 * (n in (0, 2, 5))
        path.write_bytes(data)
        os.utime(path, (1, 1))
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        assert answer(model, LONG).stats.n_reused_tokens == 0
    assert [n for n, path in enumerate(files) if path.stat().st_mtime > 1] == [0, 2, 5]
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        assert answer(model, LONG).stats.n_reused_tokens == 14 * KV_BLOCK


def test_a_prefix_under_the_name_of_another_is_made_anew(tiny_path, home) -> None:
    with loaded(tiny_path, disk_bytes=1 << 30) as model:
        answer(model, LONG)
    first, last = sorted(home.rglob("*.kv"), key=lambda path: -path.stat().st_size)
    first.write_bytes(last.read_bytes())
    for expected in (0, 14 * KV_BLOCK):
        with loaded(tiny_path, disk_bytes=1 << 30) as model:
            assert answer(model, LONG).stats.n_reused_tokens == expected


def test_folders_of_prefixes_are_in_the_home(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    assert prefixes_folder() == tmp_path / "prefixes"
