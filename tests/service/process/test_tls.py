"""The certificate that the server shows: which files are taken, and what a handshake gets after they changed."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import pytest

from service.errors import StartError
from service.process.tls import Certificate
from tests.certificates import CertificateFiles, make_certificate


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return make_certificate(tmp_path)


def common_name_shown(certificate: Certificate, trusted: Path, **options: object) -> str:
    """Shake hands with it in memory as a client that trusts one certificate, and return whose it shows."""
    client_context = ssl.create_default_context(cafile=trusted)
    for name, value in options.items():
        setattr(client_context, name, value)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = client.getpeercert()
    assert shown
    subject = dict(pair for part in shown["subject"] for pair in part)  # type: ignore[misc]
    return str(subject["commonName"])


def test_a_client_that_trusts_the_certificate_is_served(files: CertificateFiles) -> None:
    assert common_name_shown(Certificate(*files), files.certfile) == "server"


def test_key_and_certificate_may_stand_in_one_file(files: CertificateFiles) -> None:
    with files.certfile.open("a") as both:
        both.write(files.keyfile.read_text())
    assert common_name_shown(Certificate(files.certfile), files.certfile) == "server"


def test_a_key_may_have_a_password_in_a_file(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, password="open sesame")
    (tmp_path / "password").write_text("open sesame\n")
    assert common_name_shown(Certificate(*files, tmp_path / "password"), files.certfile) == "server"
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(StartError, match="no certificate with its key can be read"):
        Certificate(*files, tmp_path / "password")


def test_a_missing_password_is_an_error_and_not_a_question_on_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no certificate with its key can be read"):
        Certificate(*make_certificate(tmp_path, password="open sesame"))


def test_files_that_cannot_be_a_certificate_are_named(tmp_path: Path, files: CertificateFiles) -> None:
    other = make_certificate(tmp_path, "other")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * (1024 * 1024 + 1))
    (tmp_path / "text").write_text("no certificate")
    for pair, message in (
        ((files.certfile, other.keyfile), "KEY_VALUES_MISMATCH"),
        ((tmp_path / "missing", files.keyfile), "missing cannot be read"),
        ((tmp_path / "fifo", files.keyfile), "fifo is not a regular file"),
        ((files.certfile, tmp_path / "large"), "large has more than 1048576 bytes"),
        ((tmp_path / "text", files.keyfile), "no certificate with its key"),
    ):
        with pytest.raises(StartError, match=message):
            Certificate(*pair)


def test_after_a_change_new_connections_get_the_new_certificate_and_a_bad_one_changes_nothing(
    tmp_path: Path, files: CertificateFiles
) -> None:
    certificate = Certificate(*files)
    newer = make_certificate(tmp_path, "newer")
    shutil.copy(newer.certfile, files.certfile)
    with pytest.raises(StartError, match="KEY_VALUES_MISMATCH"):
        certificate.reload()
    with pytest.raises(ssl.SSLCertVerificationError):
        common_name_shown(certificate, newer.certfile)
    shutil.copy(newer.keyfile, files.keyfile)
    certificate.reload()
    assert common_name_shown(certificate, newer.certfile) == "newer"
    assert common_name_shown(certificate, newer.certfile, maximum_version=ssl.TLSVersion.TLSv1_2) == "newer"


def test_versions_of_tls_before_1_2_are_refused(files: CertificateFiles) -> None:
    certificate = Certificate(*files)
    assert certificate.context.minimum_version >= ssl.TLSVersion.TLSv1_2
