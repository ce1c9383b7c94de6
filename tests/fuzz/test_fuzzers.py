"""The fuzzers: a bounded part against the server, and each of their rules against a toy that breaks it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.folders import write_forecast_folder
from tests.fuzz import messages, monitor, trees
from tests.fuzz.__main__ import main
from tests.fuzz.campaign import Bounds, Findings, attack, run, valid_bodies
from tests.fuzz.cases import read_case
from tests.fuzz.contract import Contract
from tests.fuzz.trees import Body, request
from tests.fuzz.wire import MalformedResponse, parse_responses, send
from tests.serving import server_process

SEED = 20260309
COUNTS = {"messages": 200, "trees": 200, "streams": 60, "operations": 16}
BODIES = [Body("/predict", {"model": "toy", "instances": [{"history": [1.0, 2.0, 3.0]}, "text"], "parameters": {"horizon": 2}})]
PROBLEM_SCHEMA = {"type": "object", "required": ["title", "status", "code"], "properties": {"status": {"type": "integer"}}}
ANSWER_SCHEMA = {"type": "object", "required": ["predictions"], "properties": {"predictions": {"type": "array"}}}
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "toy", "version": "1"},
    "paths": {
        "/predict": {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
                "responses": {
                    "200": {"content": {"application/json": {"schema": ANSWER_SCHEMA}}},
                    "400": {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
                    "503": {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
                },
            }
        },
        "/models": {"get": {"responses": {"404": {"content": {}}}}},
    },
    "components": {"schemas": {"Problem": PROBLEM_SCHEMA}},
}


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"SLUICE_WORKERS": "2"}, id="fast path"),
        pytest.param({"SLUICE_FAST_PATH": "false"}, id="regular path", marks=pytest.mark.slow),
    ],
)
def test_hundreds_of_hostile_requests_break_no_rule(environ: dict[str, str], tmp_path: Path) -> None:
    report = run("bounded", SEED, COUNTS, tmp_path, environ=environ, bounds=Bounds(rest_s=1.0))
    assert report.problems == [], str(report)
    assert report.total >= 476
    assert {"200", "400", "404", "422"} <= report.statuses.keys()
    assert report.probe["count"] > 20


def test_equal_seeds_send_equal_cases_and_others_other_ones() -> None:
    for generate in (messages.generate, trees.generate):
        first = [generate(1, number, BODIES) for number in range(50)]
        assert first == [generate(1, number, BODIES) for number in range(50)]
        assert len({case.sent for case in first}) > 40
        assert first != [generate(2, number, BODIES) for number in range(50)]


def test_a_case_is_the_same_after_it_was_in_a_file(tmp_path: Path) -> None:
    for number in range(20):
        case = messages.generate(SEED, number, BODIES)
        assert read_case(case.write(tmp_path, ["a problem"])) == case
    case = trees.generate(SEED, 1, BODIES)
    assert read_case(case.write(tmp_path, [])) == case


def test_the_trees_reach_models_and_are_changed_everywhere() -> None:
    """Most cases stay JSON, many are still valid, and every part of the body is changed in some."""
    found = [trees.generate(SEED, number, BODIES).sent.partition(b"\r\n\r\n")[2] for number in range(400)]
    decoded = []
    for content in found:
        try:
            decoded.append(json.loads(content))
        except ValueError:
            continue
    assert 200 < len(decoded) < 400
    assert 10 < decoded.count(BODIES[0].content) < 200
    bodies = [value for value in decoded if isinstance(value, dict)]
    for key in ("model", "instances", "parameters"):
        assert any(value.get(key) != BODIES[0].content[key] for value in bodies), key


# ------------------------------------------------------------------------------------------------ rules for an answer

GOOD = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{"predictions":[]}'
REFUSED = b'{"title":"Bad","status":400,"code":"malformed_request"}'
WHOLE = request("toy", "POST", "/predict", b"{}", {})


def answer(status: int, body: bytes, *headers: bytes, media_type: bytes = b"application/problem+json") -> bytes:
    lines = [b"HTTP/1.1 %d Toy" % status, b"content-type: " + media_type, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


@contextmanager
def toy(respond: Callable[[bytes], bytes | None]) -> Iterator[tuple[str, int]]:
    """A server of one thread that answers what it received first with `respond`, or never where that is None."""
    is_over = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not is_over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                answered = respond(connection.recv(1 << 16))
                if answered is None:
                    is_over.wait(5)
                else:
                    connection.sendall(answered)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize("found", [GOOD, answer(400, REFUSED), b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD])
def test_what_is_documented_is_right(found: bytes) -> None:
    with toy(lambda _: found) as address:
        assert Contract(DOCUMENT).check(WHOLE, send(address, WHOLE)) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (b"", "0 answers"),
        (GOOD + GOOD, "2 answers"),
        (GOOD[:-3], "cut off"),
        (GOOD + b"!", "cut off"),
        (b"oops" + GOOD, "no status line"),
        (GOOD.replace(b"content-length: 18", b"content length: 18"), "no header"),
        (GOOD.replace(b"content-length: 18\r\n", b""), "no length"),
        (GOOD.replace(b"\r\n\r\n", b"\r\ncontent-length: 18\r\n\r\n"), "content-length twice"),
        (answer(200, b"[]", media_type=b"text/plain"), "documented is"),
        (answer(200, b"{}", media_type=b"application/json"), "not as documented"),
        (answer(200, b'{"predictions":[NaN]}', media_type=b"application/json"), "no JSON"),
        (answer(418, REFUSED), "documented nowhere"),
        (answer(404, REFUSED.replace(b"400", b"404")), "not documented there"),
        (answer(400, b"Traceback", media_type=b"text/html"), "as 'text/html'"),
        (answer(400, b'{"status":400}'), "not as documented"),
        (answer(400, REFUSED.replace(b"400", b"422")), "with a problem of status 422"),
        (answer(500, REFUSED.replace(b"400", b"500")), "documented nowhere"),
        (answer(503, REFUSED.replace(b"400", b"503"), b"retry-after: 1"), "server error 503 malformed_request"),
        (answer(503, REFUSED.replace(b"400", b"503").replace(b"malformed_request", b"overloaded")), "retry-after"),
    ],
)
def test_every_rule_for_an_answer_is_broken_by_some_toy(found: bytes, words: str) -> None:
    with toy(lambda _: found) as address:
        problems = Contract(DOCUMENT).check(WHOLE, send(address, WHOLE))
    assert words in "; ".join(problems)


@pytest.mark.parametrize(
    ("status", "body", "is_right"),
    [
        (400, b'{"error":"too few values"}', True),
        (503, b'{"ready":false}', True),
        (500, b'{"error":"the graph raised"}', False),
        (400, b'{"error":""}', False),
        (400, b'{"detail":"too few values"}', False),
    ],
)
def test_errors_of_the_open_inference_protocol_have_a_text(status: int, body: bytes, is_right: bool) -> None:
    case = request("toy", "POST", "/v2/models/toy/infer", b"{}", {}, is_documented=False)
    document = DOCUMENT | {"x-errors": [{"status": 500}]}
    with toy(lambda _: answer(status, body, media_type=b"application/json")) as address:
        assert (Contract(document).check(case, send(address, case)) == []) is is_right


def test_a_server_that_says_nothing_has_stalled() -> None:
    with toy(lambda _: None) as address:
        exchange = send(address, WHOLE, timeout_s=0.2)
    assert "neither answered nor closed" in Contract(DOCUMENT).check(WHOLE, exchange)[0]


def test_a_server_error_that_is_documented_is_none_the_less_one() -> None:
    document = json.loads(json.dumps(DOCUMENT).replace('"503"', '"500"'))
    with toy(lambda _: answer(500, REFUSED.replace(b"400", b"500").replace(b"malformed_request", b"internal_error"))) as address:
        assert "server error 500" in "; ".join(Contract(document).check(WHOLE, send(address, WHOLE)))


def test_the_answer_to_head_has_no_body_and_others_must_have_theirs() -> None:
    head, _, _ = GOOD.partition(b"{")
    assert [found.is_head for found in parse_responses(head + GOOD, may_be_head=True)] == [True, False]
    with pytest.raises(MalformedResponse):
        parse_responses(head)


def test_the_fuzzers_find_what_a_toy_gets_wrong_and_write_it_down(tmp_path: Path) -> None:
    """A server that fails on NaN: both generators come upon it, and the file holds the request that did it."""

    def respond(received: bytes) -> bytes:
        return answer(500, b"{}") if b"NaN" in received else answer(400, REFUSED)

    findings = Findings(Contract(DOCUMENT), tmp_path)
    with toy(respond) as address:
        for number in range(150):
            case = trees.generate(SEED, number, BODIES)
            findings.record(case, send(address, case))
    assert findings.problems
    files = list(tmp_path.glob("*.json"))
    assert files
    assert all(b"NaN" in read_case(path).sent for path in files)


# ------------------------------------------------------------------------------------------------ rules for the server


def test_a_gauge_that_is_not_zero_is_found() -> None:
    quiet = 'sluice_queue_depth_rows{model="a"} 0.0\nsluice_http_requests_in_flight{route="/metrics"} 1.0\n'
    assert monitor.busy_gauges(quiet) == []
    leak = 'sluice_http_requests_in_flight{route="/predict"} 1.0\n'
    assert monitor.busy_gauges(quiet + leak) == [leak.strip()]
    assert monitor.replaced_workers('sluice_worker_restarts_total{reason="hung"} 0.0\n') == []
    assert monitor.replaced_workers('sluice_worker_restarts_total{reason="hung"} 1.0\n')


def test_an_unforeseen_error_in_the_log_is_found() -> None:
    assert monitor.unforeseen_lines("INFO ready\nWARNING invalid HTTP request status=400\n") == []
    assert monitor.unforeseen_lines("INFO ready\nERROR unexpected error path=/\nTraceback (most recent call last):\n")


def test_a_probe_that_is_not_answered_is_a_problem() -> None:
    live = answer(200, b'{"status":"live"}', media_type=b"application/json")
    for respond, is_problem in ((lambda _: live, False), (lambda _: answer(503, REFUSED), True), (lambda _: None, True)):
        with toy(respond) as address:
            probe = monitor.LivenessProbe(address, timeout_s=0.3)
            probe.start()
            deadline = time.monotonic() + 20
            while not probe.latencies_s and time.monotonic() < deadline:
                time.sleep(0.01)
            probe.stop()
        assert bool(probe.problems) is is_problem


# The server, with a fault in every prediction.
FAULTY = """
import os, signal, time
from service.__main__ import main
from service.api import gateway

kept = []
answer = gateway.Gateway.answer

async def answer_wrongly(self, request):
    for fault in os.environ["FAULT"].split(","):
        if fault == "leak":
            self._direct[request.path][0].observer.started()
        elif fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "raise":
            raise RuntimeError("a fault that the test put in")
        elif fault == "files":
            kept.append(open(os.devnull))
        elif fault == "memory":
            kept.append(os.urandom(1 << 20))
        elif fault == "stall":
            time.sleep(0.3)
    return await answer(self, request)

gateway.Gateway.answer = answer_wrongly
main([])
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        # Faults that do not hide each other share a server.
        ("leak,files,memory", ["not zero when all is answered", "open files: ", "memory grew from "]),
        ("raise", ["in the log: "]),
        ("die", ["the server has ended with status -9"]),
        ("stall", ["/health/live took "]),
    ],
)
def test_a_fault_in_the_server_breaks_its_rule(fault: str, words: list[str], tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "models")
    bounds = Bounds(stall_s=0.25, growth_mb=20, patience_s=1.0, rest_s=0.0)
    counts = {"messages": 0, "trees": 12 if fault == "stall" else 60}
    with server_process(tmp_path / "models", code=FAULTY, FAULT=fault) as server:
        report = attack(server, valid_bodies(tmp_path / "models"), fault, SEED, counts, tmp_path / "findings", bounds=bounds)
    for each in words:
        assert any(each in problem for problem in report.problems), str(report)


def test_a_finding_is_sent_again_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trees.generate(SEED, 3, BODIES).write(tmp_path, ["found before"])
    assert main(["--replay", str(path)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
