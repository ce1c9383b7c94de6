"""Two checkouts are measured in turn: each server runs its own code in its own folder, and a slower one is marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.before_after import CASES, QUICK, SLOWER, Comparison, Sample, main, order, render, verify_checkout
from benchmarks.cases import select_cases
from benchmarks.load import Load
from benchmarks.servers import ROOT

# A service of a few lines, which records its folder and the models that it was sent. FAIL is the model that it does not know.
SERVICE = """
import json, os, pathlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.respond(200, b"{}")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if request["model"] == "FAIL":
            return self.respond(404, b"no such model")
        with open("received", "a") as file:
            file.write(json.dumps([self.path, request["model"], len(request["instances"])]) + "\\n")
        self.respond(200, b"{}")

    def respond(self, status, body):
        self.send_response_only(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

names = ("SLUICE_WORKERS", "SLUICE_MODELS", "SLUICE_DRAIN_SECONDS")
pathlib.Path("settings").write_text(json.dumps([os.environ.get(name) for name in names]))
ThreadingHTTPServer(("127.0.0.1", int(os.environ["SLUICE_PORT"])), Handler).serve_forever()
"""
QUICK_RUN = ["--rounds", "1", "--seconds", "0.2", "--client", "python"]
C64, RAGGED = select_cases(["c64", "ragged"], CASES)


def write_checkout(folder: Path, unknown_model: str = "", settings: str = "") -> Path:
    (folder / "service").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "service" / "__init__.py").touch()
    (folder / "service" / "__main__.py").write_text(SERVICE.replace("FAIL", unknown_model))
    (folder / "service" / "settings.py").write_text(settings)
    return folder


def sample(rate: float, cpu_us: float = 100.0, num_failed: int = 0) -> Sample:
    return Sample(Load(rate, p50_ms=10.0, p99_ms=20.0, num_failed=num_failed), cpu_us)


def test_each_checkout_serves_from_its_own_folder_and_gets_the_same_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = write_checkout(tmp_path / "before"), write_checkout(tmp_path / "after", settings="drain_seconds: float")
    main(["--before", str(before), "--after", str(after), "--cases", "c1", "i16", "--processes", "2", *QUICK_RUN])
    for checkout, drain_s in ((before, None), (after, "0")):
        assert json.loads((checkout / "settings").read_text()) == ["2", str(checkout / "models"), drain_s]
        received = {tuple(json.loads(line)) for line in (checkout / "received").read_text().splitlines()}
        assert received == {("/predict", "forecast-hourly", 1), ("/predict", "forecast-hourly", 16)}
    table = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert [row.split(" | ")[:2] for row in table[2:]] == [
        ["| `forecast-hourly`, 1 connection", "2"],
        ["| `forecast-hourly`, 16 instances, 16 connections", "2"],
    ]
    assert all(row.split(" | ")[-2] == "0" for row in table[2:])


def test_a_case_that_one_checkout_refuses_is_not_measured_and_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = write_checkout(tmp_path / "before", unknown_model="sentiment-en"), write_checkout(tmp_path / "after")
    main(["--before", str(before), "--after", str(after), "--cases", "c1", "texts", "--processes", "1", *QUICK_RUN])
    hourly, texts = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()[2:]
    assert "not measured" not in hourly
    assert texts.endswith("not measured: before: status 404, no such model |")


def test_checkouts_alternate_in_being_measured_first() -> None:
    assert [order(number)[0] for number in range(4)] == ["before", "after", "before", "after"]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios_and_marked_below_the_bound() -> None:
    # The machine was half as fast in the second round: 0.9, 0.96, 1.02.
    slower = Comparison(C64, 1, [sample(1000), sample(500), sample(1000)], [sample(900), sample(480, 110), sample(1020)])
    equal = Comparison(RAGGED, 2, [sample(1000), sample(1000)], [sample(940), sample(1020, num_failed=3)])
    assert slower.rate_ratios == pytest.approx([0.9, 0.96, 1.02])
    assert slower.cpu_ratios == pytest.approx([1, 1.1, 1])
    first, second = render([slower, equal]).splitlines()[2:]
    assert "| 1,000 | 900 | 0.96 (0.90 to 1.02) | 100 → 100, 1.00 (1.00 to 1.10) | 10.0 / 20.0 | 10.0 / 20.0 | 0 |" in first
    assert first.endswith("| **slower** |")
    assert second.endswith("| 3 |  |")


@pytest.mark.parametrize(("ratio", "is_slower"), [(SLOWER - 0.001, True), (SLOWER, False), (1.1, False)])
def test_the_bound_itself_is_not_slower(ratio: float, is_slower: bool) -> None:
    assert Comparison(C64, 1, [sample(1.0)], [sample(ratio)]).is_slower == is_slower


def test_a_folder_that_is_not_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a checkout of Sluice"):
        verify_checkout(tmp_path)
    assert verify_checkout(ROOT) == ROOT
    assert verify_checkout(write_checkout(tmp_path / "other")) == tmp_path / "other"


def test_the_quick_cases_exist_and_every_case_has_a_title_of_its_own() -> None:
    assert set(QUICK) < {case.name for case in CASES}
    assert len({case.title for case in CASES}) == len(CASES)
