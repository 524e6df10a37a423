"""TLS with a real certificate; whether forwarded headers are believed is in test_access."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import logging

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_sdk.errors import ConfigError, ServerUnreachable
from edge_sdk.network.enrolment import join
from edge_sdk.network.transport import Transport
from server import serving
from server.access.auth import make_enrolment_token
from server.app import create_app
from server.serving import make_config
from server.settings.settings import Settings
from tests.contract.live import live_server

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def write_certificate(folder, name="server"):
    """A self-signed certificate of 127.0.0.1; returns the files of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}-key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tuple(map(str, files))


@pytest.fixture
def settings(site, tmp_path):
    certificate, key = write_certificate(tmp_path)
    yield Settings(state=site.settings.state, tls_certificate=certificate, tls_key=key)
    gc.collect()  # asyncio leaves the sockets of failed handshakes to it


def test_a_device_joins_over_tls_if_it_trusts_the_certificate(
    site, settings, tmp_path, monkeypatch
):
    token = make_enrolment_token(site.store, 0.0)
    with live_server(settings) as url:
        assert url.startswith("https://")
        with pytest.raises(ServerUnreachable, match="SSLError"):
            Transport(url, retries=0).tasks()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", settings.tls_certificate)
        identity = join(tmp_path / "device", url, token, "phone")
        assert Transport(url, identity).tasks() == []


def test_the_certificate_of_another_server_is_not_believed(site, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", write_certificate(tmp_path, "other")[0])
    with live_server(settings) as url, pytest.raises(ServerUnreachable, match="SSLError"):
        Transport(url, retries=0).tasks()


def test_a_certificate_that_cannot_be_used_is_one_error(site, settings, tmp_path):
    other_key = write_certificate(tmp_path, "other")[1]
    (tmp_path / "no.pem").write_text("not a certificate")
    for files in (
        (settings.tls_certificate, other_key),
        (str(tmp_path / "no.pem"), settings.tls_key),
        (str(tmp_path / "missing.pem"), settings.tls_key),
    ):
        wrong = Settings(state=site.settings.state, tls_certificate=files[0], tls_key=files[1])
        app = create_app(wrong)
        with pytest.raises(ConfigError, match="both must be PEM files"):
            make_config(app, wrong)
        app.state.store.close()


def test_a_certificate_without_a_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="belong together"):
        Settings(state=tmp_path, tls_certificate="server.pem")


def test_listening_to_the_world_without_tls_is_warned_of(site, settings, caplog):
    caplog.set_level(logging.WARNING)
    serving._warn(Settings(state=site.settings.state, host="0.0.0.0"), site.store)
    assert "without TLS" in caplog.text
    caplog.clear()
    open_to_all = Settings(
        state=site.settings.state,
        host="0.0.0.0",
        tls_certificate=settings.tls_certificate,
        tls_key=settings.tls_key,
    )
    serving._warn(open_to_all, site.store)
    assert "without TLS" not in caplog.text
