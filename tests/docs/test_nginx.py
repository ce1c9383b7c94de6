"""The nginx.conf of docs/how-to/nginx.md in a real nginx, with a certificate of its own, in front of a real server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.folders import write_text_folder
from tests.serving import PATIENCE_S, server_process, wait_until
from tests.websockets import open_websocket, receive_rest
from tests.websockets import send as send_messages

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "nginx.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
HOST = "models.example.org"


class Proxy(NamedTuple):
    """nginx in front of a server, both running."""

    port: int
    certificate: Path
    client: httpx.Client


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if NGINX is None or OPENSSL is None:
        pytest.skip("nginx and openssl are not both installed")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    made = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *subject], check=True, capture_output=True, timeout=60)
    write_text_folder(folder / "models")
    with server_process(folder / "models") as server:
        port = free_port()
        config = configuration(server.url, port, certificate, key, folder)
        process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")], cwd=folder)
        try:
            wait_until(lambda: process.poll() is not None or is_listening(port), "nginx listens")
            assert process.poll() is None, (folder / "error.log").read_text()
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=PATIENCE_S) as client:
                client.headers["host"] = HOST
                yield Proxy(port, certificate, client)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def configuration(url: str, port: int, certificate: Path, key: Path, folder: Path) -> Path:
    """The page's file with the places, ports and certificate of this test, and with temporary folders that it may write to."""
    (text,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    temporary = "".join(
        f"    {name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for old, new in (
        ("127.0.0.1:8000", url.removeprefix("http://")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/models.example.org.pem", str(certificate)),
        ("/etc/ssl/models.example.org.key", str(key)),
        ("worker_processes auto;", f"worker_processes 1;\ndaemon off;\npid {folder / 'nginx.pid'};"),
        ("http {\n", f"http {{\n    access_log off;\n{temporary}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send(proxy: Proxy, method: str, path: str, body: bytes | None = None) -> httpx.Response:
    headers = {} if body is None else {"content-type": "application/json"}
    request = proxy.client.build_request(method, path, content=body, headers=headers, extensions={"sni_hostname": HOST})
    return proxy.client.send(request)


def test_a_prediction_comes_through_tls(proxy: Proxy) -> None:
    answer = send(proxy, "POST", "/predict/sentiment", json.dumps({"instances": ["a good film"]}).encode())
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "toy-sentiment"


@pytest.mark.parametrize("path", ["/models", "/docs", "/openapi.json", "/health/ready"])
def test_what_clients_may_see_is_passed_on(proxy: Proxy, path: str) -> None:
    assert send(proxy, "GET", path).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/", "/anything"])
def test_what_is_for_the_inside_is_not(proxy: Proxy, path: str) -> None:
    assert send(proxy, "GET", path).status_code == 404


def test_a_websocket_comes_through_tls(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    with (
        socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as connection,
        open_websocket(f"https://{HOST}", sock=connection, ssl=context, origin=f"https://{HOST}") as websocket,
    ):
        send_messages(websocket, {"model": "toy-sentiment"})
        messages, code = receive_rest(websocket)
    assert [(field, content["code"]) for field, content in messages] == [("error", "invalid_state")]
    assert code == 1008


def test_errors_keep_their_bodies(proxy: Proxy) -> None:
    answer = send(proxy, "POST", "/predict/sentiment", b'{"instances": [""]}')
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def test_a_body_beyond_the_limit_is_refused(proxy: Proxy) -> None:
    assert send(proxy, "POST", "/predict", b"[" + b" " * (8 * 1024 * 1024)).status_code == 413


def test_plain_http_is_refused_at_the_port_of_tls(proxy: Proxy) -> None:
    assert httpx.get(f"http://127.0.0.1:{proxy.port}/models", timeout=PATIENCE_S).status_code == 400
