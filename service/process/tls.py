"""The certificate that this server shows its clients, read again when its files change.

Knows nothing of HTTP: whoever accepts connections hands `Tls.options` to the event loop.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any, NamedTuple

from service.errors import StartError

MAX_FILE_BYTES = 1024 * 1024
# How long a connection that is closed waits for the client's part of the TLS shutdown.
SHUTDOWN_TIMEOUT_S = 5.0
# HTTP/2 is not spoken here; a client that offers both takes this one.
PROTOCOLS = ("http/1.1",)


class Certificate:
    """A certificate chain with its private key. `reload` may be called from another thread."""

    def __init__(self, certfile: Path, keyfile: Path | None = None, password_file: Path | None = None) -> None:
        """Without `keyfile`, the key stands in `certfile` too. Raises StartError that says what is wrong with the files."""
        self._certfile = certfile
        self._keyfile = keyfile
        self._password_file = password_file
        self.context = self._current = self._load()
        self.context.sni_callback = self._switch

    @property
    def files(self) -> tuple[Path, ...]:
        """What the certificate is read from."""
        return tuple(file for file in (self._certfile, self._keyfile, self._password_file) if file is not None)

    def reload(self) -> None:
        """Show new connections what the files hold now. Raises StartError, and then goes on showing what it did."""
        self._current = self._load()

    def _switch(self, connection: ssl.SSLObject | ssl.SSLSocket, server_name: str | None, first: ssl.SSLContext) -> None:
        """OpenSSL calls this once per handshake: a listening context stays what it is, so each connection gets the newest."""
        if self._current is not first:
            connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        for file in self.files:
            _require_small_file(file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(PROTOCOLS)
        try:
            # Without any password OpenSSL would ask for one on the terminal.
            password = "" if self._password_file is None else self._password_file.read_text(encoding="utf-8").rstrip("\r\n")
            context.load_cert_chain(self._certfile, self._keyfile, password)
        except ssl.SSLError as exc:
            files = " and ".join(str(file) for file in self.files)
            raise StartError(
                f"no certificate with its key can be read from {files}: {exc.reason or 'wrong password or no PEM'}"
            ) from exc
        except (OSError, ValueError) as exc:
            raise StartError(f"the certificate cannot be read: {exc}") from exc
        return context


class Tls(NamedTuple):
    """How the connections of a server are encrypted."""

    certificate: Certificate
    handshake_timeout_s: float

    @property
    def options(self) -> dict[str, Any]:
        """For the methods of the event loop that begin connections."""
        return {
            "ssl": self.certificate.context,
            "ssl_handshake_timeout": self.handshake_timeout_s,
            "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT_S,
        }


def _require_small_file(path: Path) -> None:
    try:
        found = path.stat()
    except OSError as exc:
        raise StartError(f"{path} cannot be read: {exc.strerror}") from exc
    if not stat.S_ISREG(found.st_mode):
        raise StartError(f"{path} is not a regular file")
    if found.st_size > MAX_FILE_BYTES:
        raise StartError(f"{path} has more than {MAX_FILE_BYTES} bytes")
