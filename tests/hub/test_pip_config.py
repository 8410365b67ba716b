from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgellm.errors import UsageError
from edgellm.hub.pip_config import DEFAULT_INDEX, DEFAULT_TIMEOUT, read_pip_config


def test_without_any_configuration(tmp_path: Path) -> None:
    config = read_pip_config({"PIP_CONFIG_FILE": os.devnull, "HOME": str(tmp_path)})
    assert config.index_urls == (DEFAULT_INDEX,)
    assert config.timeout == DEFAULT_TIMEOUT
    assert config.cert is None


@pytest.mark.skipif(sys.platform == "win32", reason="the files lie elsewhere")
def test_files_and_variables_in_pips_order(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("system/pip/pip.conf", "[global]\nindex-url = http://system/simple\ncert = /system.pem\nproxy = p:1\n")
    write(".config/pip/pip.conf", "[global]\nindex-url = http://user/simple\n[download]\ntimeout = 7\n")
    chosen = write("chosen.conf", "[global]\nextra_index_url =\n  http://a/simple\n  http://b/simple\ncert=/mine.pem\n")
    environ = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path / "system"),
        "PIP_CONFIG_FILE": str(chosen),
    }
    config = read_pip_config(environ)
    assert config.index_urls == ("http://user/simple", "http://a/simple", "http://b/simple")
    assert (config.cert, config.proxy, config.timeout) == ("/mine.pem", "p:1", 7.0)
    config = read_pip_config(
        {**environ, "PIP_INDEX_URL": "http://env/simple", "PIP_TRUSTED_HOST": "a b", "PIP_CERT": ""}
    )
    assert config.index_urls[0] == "http://env/simple"
    assert config.trusted_hosts == {"a", "b"}
    assert config.cert == "/mine.pem"  # an empty variable is none
    assert read_pip_config({**environ, "PIP_NO_INDEX": "1"}).index_urls == ()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "pip.conf"
    broken.write_text("no section\n")
    with pytest.raises(UsageError, match=r"pip.conf cannot be read"):
        read_pip_config({"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(broken)})
    with pytest.raises(UsageError, match="timeout is 'soon'"):
        read_pip_config({"PIP_CONFIG_FILE": os.devnull, "PIP_TIMEOUT": "soon"})
