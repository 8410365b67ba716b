"""Compiled templates are kept, give the same when they are read, and are believed only as they were written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edgellm.errors import FileProblem, TemplateError
from edgellm.text import ChatTemplate, template_store
from edgellm.text.template_sandbox import GuardedEnvironment

CHAT = [{"role": "user", "content": "Hi 'ü' <|end|>"}, {"role": "assistant", "content": "Hello"}]
SOURCE = """{#- a comment that makes it long: %s -#}
{%%- set ns = namespace(n=0) -%%}
{%%- for message in messages -%%}
<|%%(|>{{ message.role }}{{ '\\n' + message['content'] | trim ~ '<|end|>' }}{%% set ns.n = ns.n + 1 %%}
{%%- endfor -%%}
{{ ns.n }}ü
{%%- if fail is defined %%}

{{ raise_exception('no: ' ~ fail) }}{{ 1 // 0 }}{%% endif -%%}
""" % ("x" * template_store.LEAST_SOURCE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where templates are kept, of a home of its own."""
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return tmp_path / "templates"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were compiled."""
    sources: list[str] = []
    usual = GuardedEnvironment.compile

    def compile(self, source, *args):
        sources.append(source)
        return usual(self, source, *args)

    monkeypatch.setattr(GuardedEnvironment, "compile", compile)
    return sources


def rendered(source: str = SOURCE, **variables) -> tuple[str, bytes]:
    """The prompt, and which of it the template wrote itself."""
    prompt = ChatTemplate(source).render(CHAT, **variables)
    return str(prompt), prompt.own


def kept(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_second_start_compiles_nothing(compiled):
    first = rendered()
    assert compiled == [SOURCE]
    assert rendered() == first
    assert compiled == [SOURCE]
    text, own = first
    assert text.startswith("<|%(|>user\nHi 'ü' <|end|><|end|>")
    assert own[text.index("<|end|>")] == 0  # the user's
    assert own[text.index("<|end|>") + len("<|end|>")] == 1  # the template's


def test_what_goes_wrong_is_said_the_same(compiled):
    found = []
    for _ in range(2):
        with pytest.raises(TemplateError) as raised:
            rendered(fail="ü")
        found.append(str(raised.value))
    assert found == ["no: ü"] * 2
    source = SOURCE.replace("raise_exception('no: ' ~ fail)", "''")
    for _ in range(2):
        with pytest.raises(TemplateError, match="by zero"):
            rendered(source, fail="ü")
    assert compiled == [SOURCE, source]


def test_each_template_has_its_own(compiled):
    other = SOURCE.replace("Hello", "Bye").replace("<|%%(|>", "[") + "end"
    assert rendered() != rendered(other)
    assert compiled == [SOURCE, other]


def test_a_short_or_malformed_one_is_not_kept(folder):
    rendered("{{ messages[0].content }}")
    with pytest.raises(TemplateError):
        rendered(SOURCE + "{% if %}")
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another's", "others can write"])
def test_what_is_not_as_it_was_written_is_compiled_again(folder, compiled, damage):
    first = rendered()
    path = kept(folder)
    content = path.read_bytes()
    if damage == "others can write":
        os.chmod(path, 0o666)
    elif damage == "another's":
        rendered(SOURCE + "more")
        (other,) = (file for file in folder.iterdir() if file != path)
        shutil.copy(other, path)
        os.chmod(path, 0o600)
        compiled.clear()
        compiled.append(SOURCE)
    else:
        damaged = {"cut": content[:-1], "changed": content[:-9] + b"\0" + content[-8:], "empty": b""}[damage]
        path.write_bytes(damaged)
    assert rendered() == first
    assert compiled == [SOURCE, SOURCE]
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600


def test_of_other_code_it_is_another_program(compiled, monkeypatch):
    rendered()
    monkeypatch.setattr(template_store, "_makers", lambda: "another version")
    rendered()
    assert compiled == [SOURCE, SOURCE]


def test_the_oldest_go(folder, monkeypatch):
    monkeypatch.setattr(template_store, "MOST_KEPT", 2)
    known: list[Path] = []
    for n in range(4):
        rendered(SOURCE + str(n))
        (new,) = (path for path in folder.iterdir() if path not in known)
        os.utime(new, (n, n))
        known.append(new)
    assert set(folder.iterdir()) == set(known[-2:])


def test_nothing_is_kept_where_there_is_no_place(compiled, monkeypatch):
    def nowhere() -> Path:
        raise FileProblem("this user has no home folder")

    monkeypatch.setattr(template_store, "templates_folder", nowhere)
    assert rendered() == rendered()
    assert compiled == [SOURCE, SOURCE]
