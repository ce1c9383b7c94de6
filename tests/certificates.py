"""Certificates for tests, made by OpenSSL's command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class CertificateFiles(NamedTuple):
    """A certificate for localhost that signs itself, so that it is its own authority, with its key."""

    certfile: Path
    keyfile: Path


def make_certificate(folder: Path, name: str = "server", *, password: str | None = None) -> CertificateFiles:
    """`name` becomes the common name, and the names of both files."""
    files = CertificateFiles(folder / f"{name}.pem", folder / f"{name}.key")
    encryption = ["-noenc"] if password is None else ["-passout", f"pass:{password}"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *encryption]
    command += ["-keyout", str(files.keyfile), "-out", str(files.certfile), "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return files
