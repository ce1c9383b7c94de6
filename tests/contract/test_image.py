"""The built image: a root that nobody can write to, any user, no compilers, and a list of what is installed.

Looks at the image `sluice` of docker or podman (IMAGE names another one), or at the root filesystem of a built image that
IMAGE_ROOT names, which takes root on Linux. Skips with a reason where there is neither; `docker build -t sluice .` makes one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import free_port
from tests.serving import PATIENCE_S, ROOT, wait_until

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc", "ld", "as", "make", "cmake", "rustc", "cargo", "go", "nvcc", "javac")
SBOM = "/opt/sluice/sbom.cdx.json"
# The user of the image, and one that it has never heard of.
USERS = ("10001:10001", "23456:34567")
# The root is read-only, /tmp is memory; $1 is the root, $2 the user, the rest the command.
ENTER = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -t tmpfs tmpfs "$1/tmp" && chmod 1777 "$1/tmp" \
&& mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" || exit 99
root=$1 user=$2; shift 2
exec chroot --userspec="$user" "$root" /bin/sh -c 'cd /app && exec "$@"' sh "$@"
"""


def image_environment() -> dict[str, str]:
    """What ENV of the Dockerfile sets."""
    [block] = re.findall(r"^ENV (.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    pairs = dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())
    return pairs | {"PATH": pairs["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")}


@dataclass(frozen=True)
class Image:
    """An image of an engine, or the folder of its root filesystem."""

    engine: str | None
    name: str

    def command(self, arguments: Sequence[str], user: str, port: int, container: str) -> list[str]:
        """What runs `arguments` in the image with a read-only root; the server's port is `port` of this machine."""
        if self.engine is not None:
            options = ["--rm", "--init", "--name", container, "--read-only", "--tmpfs", "/tmp", "--user", user]
            return [self.engine, "run", *options, "-p", f"127.0.0.1:{port}:8000", self.name, *arguments]
        environ = [f"{name}={value}" for name, value in (image_environment() | {"SLUICE_PORT": str(port)}).items()]
        enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "sh", self.name, user]
        return [*enter, "/usr/bin/env", "-i", *environ, *arguments]

    def run(self, *arguments: str, user: str = USERS[0]) -> subprocess.CompletedProcess[str]:
        command = self.command(arguments, user, free_port(), f"sluice-test-{uuid.uuid4().hex}")
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * PATIENCE_S)

    @contextlib.contextmanager
    def serve(self, user: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        port, container = free_port(), f"sluice-test-{uuid.uuid4().hex}"
        command = self.command(["env", "SLUICE_DRAIN_SECONDS=0", "SLUICE_WORKERS=2", "sluice", "serve"], user, port, container)
        process = subprocess.Popen(command, stdout=sys.stderr)
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
                if self.engine is not None:
                    subprocess.run([self.engine, "rm", "--force", container], capture_output=True, check=False)


@pytest.fixture(scope="module")
def image() -> Image:
    if root := os.environ.get("IMAGE_ROOT"):
        if os.geteuid() != 0:
            pytest.skip("IMAGE_ROOT is entered as root only")
        return Image(None, root)
    name = os.environ.get("IMAGE", "sluice")
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            found = subprocess.run([engine, "image", "inspect", name], capture_output=True, check=False)
            if found.returncode == 0:
                return Image(engine, name)
    pytest.skip(f"no docker or podman with an image {name!r}, and no IMAGE_ROOT")


@pytest.mark.parametrize("user", USERS)
def test_the_image_serves_as_any_user_and_writes_nowhere_but_in_tmp(image: Image, user: str) -> None:
    with image.serve(user) as (url, process):

        def is_ready() -> bool:
            assert process.poll() is None, "the image ended"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/health/ready").status_code == 200
            return False

        wait_until(is_ready, "the image is ready")
        answer = httpx.post(f"{url}/predict/sentiment", json={"instances": ["A gripping, beautifully shot film."]})
        assert answer.json()["predictions"][0]["label"] == "positive"
        assert "sluice_build_info" in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_nothing_in_the_image_can_be_written_to_but_tmp(image: Image) -> None:
    assert image.run("touch", "/tmp/file").returncode == 0
    for place in ("/app/file", "/app/models/file", "/opt/sluice/file", "/file", "/var/tmp/file"):
        assert image.run("touch", place).returncode != 0, place


def test_the_image_has_no_compiler_no_installer_and_no_torch(image: Image) -> None:
    names = " ".join((*COMPILERS, "python3", "sluice"))
    found = image.run("sh", "-c", f"for name in {names}; do command -v $name; done; true")
    assert sorted(map(os.path.basename, found.stdout.split())) == ["python3", "sluice"], found
    for module in ("pip", "setuptools", "torch", "training"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is not None)"
        assert image.run("python3", "-c", code).returncode == 0, module


def test_the_image_lists_exactly_what_is_installed_in_it(image: Image) -> None:
    bom = json.loads(image.run("cat", SBOM).stdout)
    assert bom["bomFormat"] == "CycloneDX"
    code = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    installed = {(name, version) for name, version in json.loads(image.run("python3", "-c", code).stdout)}
    assert {(part["name"], part["version"]) for part in bom["components"]} == installed
    assert {"sluice-serving", "onnxruntime", "uvicorn"} <= {name for name, _ in installed}


def test_the_image_and_the_make_target_list_with_the_same_tool() -> None:
    [version] = re.findall(r"^ARG CYCLONEDX=(cyclonedx-bom==\S+)$", DOCKERFILE, re.MULTILINE)
    assert version in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_image_names_a_plain_user() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["10001"]
    assert Path(ROOT / ".dockerignore").read_text(encoding="utf-8").startswith("*\n")
