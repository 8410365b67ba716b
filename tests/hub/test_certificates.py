"""Which authorities are believed, where a Python brings none by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm.hub import network
from edgellm.hub.network import Network

# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=A test" -days 36500
AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUDNsbmB2suxi5Iwz6y+QF4dSqSykwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGQSB0ZXN0MCAXDTI2MTEyNjE0MDkyNVoYDzIxMjYxMTAyMTQw
OTI1WjARMQ8wDQYDVQQDDAZBIHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATObGVe+/UV01qWkQGMlHqqFVa8LRjqTlMYB3Jk91NjpJf6Zk1owo7tcloUmMAJ
jUzQ8fcKPJXDH/n6dy0ODECYo1MwUTAdBgNVHQ4EFgQUUt4RM1i3XDWfPYujZoMC
r0ilPYQwHwYDVR0jBBgwFoAUUt4RM1i3XDWfPYujZoMCr0ilPYQwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA5ov1jXvYn+6Hday+x0JdvqCzYwqD
ZfHsLQrHUl/khCoCIQCb0eEOjqW37x1oyR9jfmCLKxu5e74pC9EmOrbpoG31oA==
-----END CERTIFICATE-----
"""


def believed(where: Network) -> list[str]:
    """The names of authorities, read anew."""
    network._ssl_context.cache_clear()
    return [dict(part[0] for part in ca["subject"])["commonName"] for ca in where._ssl_context("x").get_ca_certs()]


@pytest.fixture
def macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac whose Python finds no certificates; the file is where the system keeps its own."""
    path = tmp_path / "cert.pem"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(network, "MACOS_CERTIFICATES", str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return path


def test_a_mac_lends_its_own(macos: Path) -> None:
    assert believed(Network()) == []
    macos.write_text(AUTHORITY, encoding="ascii")
    assert believed(Network()) == ["A test"]


def test_those_that_somebody_names_stand_alone(macos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macos.write_text("no certificate", encoding="ascii")
    named = tmp_path / "named.pem"
    named.write_text(AUTHORITY, encoding="ascii")
    assert believed(Network(cert=str(named))) == ["A test"]
    monkeypatch.setenv("SSL_CERT_FILE", str(named))
    assert believed(Network()) == ["A test"]


def test_nothing_undeclared_is_imported(macos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "certifi", None)
    macos.write_text(AUTHORITY, encoding="ascii")
    assert believed(Network()) == ["A test"]
