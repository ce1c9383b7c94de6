"""A proxy process that spoils the first connections as its arguments say: `python faulty_server.py URL FAULT...`.

Each connection takes the next fault, and those after the last are passed on whole. Prints its port. Faults:

    close       closes without an answer, once the request has begun
    cut         closes in the middle of the answer
    refuse      503 with Retry-After: 0, as a problem
    busy        503 with Retry-After: 1000
    proxy       502 as a proxy writes it, in HTML
    silent      never answers
    drip        answers a byte now and then
    head        answers with a head that comes byte by byte
    continue    answers 100 now and then
    gzip        answers with a compressed body that comes byte by byte, and of which nothing can be unpacked
    other       200 with something else
    shape       200 with a prediction that is none
    ragged      200 with a forecast that has more values than times
    packed      200 with a body that is not compressed as its head says
    twice       200 with a body that is compressed twice
    place       422 for an instance that the request does not have
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

PROBLEM = b'{"code":"overloaded","title":"Too busy","status":503,"detail":"the queue is full"}'


def answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ANSWERS = {
    "refuse": answer("503 x", PROBLEM, "Retry-After: 0", "Content-Type: application/problem+json"),
    "busy": answer("503 x", PROBLEM, "Retry-After: 1000", "Content-Type: application/problem+json"),
    "proxy": answer("502 Bad Gateway", b"<html>bad gateway</html>"),
    "shape": answer("200 OK", b'{"predictions": [5]}'),
    "ragged": answer("200 OK", b'{"predictions": [{"forecast": [1, 2], "timestamps": ["2024-01-01T05:00:00"]}]}'),
    "packed": answer("200 OK", b'{"predictions": [5]}', "Content-Encoding: gzip"),
    "twice": answer("200 OK", gzip.compress(gzip.compress(b'{"predictions": [5]}')), "Content-Encoding: gzip, gzip"),
    "place": answer("422 x", b'{"code": "invalid_input", "detail": "no", "instance_index": 999}'),
    "other": answer("200 OK", b'{"hello": "world"}', "Content-Type: application/json"),
}

GZIP_WITH_NAME = b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\xff"
"""The beginning of a gzip stream, up to the name of the file, which ends with a NUL."""
DRIPS = {
    "drip": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "head": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n" + GZIP_WITH_NAME, b"a"),
}
"""What is sent at first, and then again and again."""


def read_request(connection: socket.socket) -> bytes:
    """A whole request."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536)
    head, _, body = content.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\nConnection: close\r\n\r\n" + body


def serve(connection: socket.socket, fault: str, target: tuple[str, int]) -> None:
    with contextlib.suppress(OSError), connection:
        if fault == "close":
            connection.recv(1)
            return
        request = read_request(connection)
        if fault in ANSWERS:
            connection.sendall(ANSWERS[fault])
        elif fault == "silent":
            connection.recv(1)
        elif fault in DRIPS:
            first, drop = DRIPS[fault]
            connection.sendall(first)
            while True:
                connection.sendall(drop)
                time.sleep(0.05)
        else:
            with socket.create_connection(target) as server:
                server.sendall(request)
                blocks = iter(lambda: server.recv(65536), b"")
                if fault == "cut":
                    connection.sendall(next(blocks)[:-5])
                    return
                for block in blocks:
                    connection.sendall(block)


def main(url: str, faults: list[str]) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        fault = faults.pop(0) if faults else ""
        threading.Thread(target=serve, args=(connection, fault, (parts.hostname, parts.port)), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
