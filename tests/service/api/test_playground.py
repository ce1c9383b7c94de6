"""The playground: its headers and files, and what it does in a real browser with models and servers that mean it no good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.access.keys import describe_entry, new_key
from service.api.page import FILES, MAX_AGE_S, PLAYGROUND, PLAYGROUND_FILES, SECURITY_HEADERS, STATIC, UPLOT
from tests import browser
from tests.docs.screenshots import PICTURES, SIZES
from tests.folders import edit_manifest, write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import ROOT, ServerProcess, client_of, server_process, wait_until

# uPlot as its makers publish it on npm; SOURCE.md beside it says which version, and how to raise it.
UPLOT_SUMS = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
MAX_CHART_BYTES = 64 * 1024
MAX_PICTURE_BYTES = 150_000
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TAB, RIGHT = "\ue004", "\ue014"
"""Keys, as the WebDriver specification numbers them."""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path) as client:
        yield client


async def test_the_page_is_kept_by_its_tag_and_asked_for_anew(client: httpx.AsyncClient) -> None:
    page = await client.get("/play")
    assert page.content == PLAYGROUND.read_bytes()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert {name: page.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "set-cookie" not in page.headers
    for known in (page.headers["etag"], f'"other", W/{page.headers["etag"]}', "*"):
        again = await client.get("/play", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert {name: again.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert (await client.get("/play", headers={"if-none-match": '"other"'})).status_code == 200
    head = await client.head("/play")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", page.headers["etag"])


async def test_a_file_that_a_browser_has_is_not_sent_again(client: httpx.AsyncClient) -> None:
    for name in FILES:
        answer = await client.get(f"/static/{name}")
        again = await client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), name
        assert again.headers["cache-control"] == f"public, max-age={MAX_AGE_S}"
        assert again.headers["x-content-type-options"] == "nosniff"


async def test_no_tag_does_harm(client: httpx.AsyncClient) -> None:
    for tag in ('"' * 4000, ",".join(['"a"'] * 2000), "W/" * 3000, "\u00ff"):
        assert (await client.get("/play", headers=[(b"if-none-match", tag.encode("latin-1"))])).status_code == 200


async def test_without_the_playground_there_is_nothing_of_it(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path, playground=False) as client:
        for path in ("/play", *(f"/static/{name}" for name in PLAYGROUND_FILES)):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        assert "/play" not in (await client.get("/", headers={"accept": "text/html"})).text
        for path in ("/docs", "/docs/errors", "/static/sluice.css"):
            assert (await client.get(path)).status_code == 200


async def test_the_index_leads_to_it_and_nothing_can_be_sent_to_it(client: httpx.AsyncClient) -> None:
    assert (await client.post("/play")).status_code == 405
    assert '<a href="/play">' in (await client.get("/", headers={"accept": "text/html"})).text


def test_the_chart_library_is_small_and_as_its_makers_published_it() -> None:
    for name, expected in UPLOT_SUMS.items():
        assert hashlib.sha256((UPLOT / name).read_bytes()).hexdigest() == expected, name
    assert sum((UPLOT / name).stat().st_size for name in UPLOT_SUMS) < MAX_CHART_BYTES
    about = (UPLOT / "SOURCE.md").read_text()
    (version,) = {line.split("uPlot ")[1] for line in about.splitlines() if line.startswith("# uPlot ")}
    assert f"(v{version})" in (UPLOT / "uPlot.iife.min.js").read_text()[:100]


def test_no_script_of_ours_writes_markup_keeps_anything_or_runs_texts() -> None:
    forbidden = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "Storage", "cookie")
    for path in STATIC.glob("play*.js"):
        found = path.read_text()
        assert [name for name in forbidden if name in found] == [], path.name


def test_its_page_has_pictures_which_are_small() -> None:
    page = (ROOT / "docs" / "how-to" / "playground.md").read_text(encoding="utf-8")
    for name in SIZES:
        assert f"../pictures/{name}.png" in page
        assert (PICTURES / f"{name}.png").stat().st_size < MAX_PICTURE_BYTES


# --------------------------------------------------------------------------------------------------- in a real browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    write_forecast_folder(models, "toy-two", features=("one", "two"), frequencies=("H", "D"))
    write_text_folder(models)
    write_tensor_folder(models)
    with server_process(models) as server:
        yield server


def open_page(window: browser.Browser, url: str, model: str) -> None:
    """The page with a model; what was there before is forgotten."""
    window.open("about:blank")
    window.console()
    window.open(f"{url}/play#{model}")
    wait_until(lambda: window.run("return document.getElementById('model').value") == model, f"{model} is chosen")


def put(window: browser.Browser, selector: str, value: str, event: str = "input") -> None:
    """Give an element a value, as a paste does."""
    script = "const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2]));"
    window.run(script, selector, value, event)


def text(window: browser.Browser, selector: str) -> str:
    return " ".join(window.texts(selector))


def sent(window: browser.Browser) -> dict[str, Any]:
    """The body of the request that the page shows as curl."""
    wait_until(lambda: "-d '" in text(window, "#curl"), "curl is shown")
    quoted = text(window, "#curl").split("-d '", 1)[1].removesuffix("'")
    body: dict[str, Any] = json.loads(quoted.replace("'\\''", "'"))
    return body


def table(window: browser.Browser) -> list[str]:
    return window.texts("#forecast-rows tr td:nth-child(2)")


def test_a_series_is_forecast_with_bands_and_the_horizon_moves(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-forecast")
    wait_until(lambda: len(table(window)) == 4, "the example is forecast")
    put(window, "#series", "1 2 3, 4;5\n")
    wait_until(lambda: sent(window)["instances"][0]["history"] == [1, 2, 3, 4, 5], "the numbers are sent")
    answer = httpx.post(f"{server.url}/predict", json=sent(window)).json()["predictions"][0]
    expected = [f"{value:.6g}" for value in answer["forecast"]]
    wait_until(lambda: [f"{float(value):.6g}" for value in table(window)] == expected, "the forecast of these is shown")
    assert window.texts("#forecast-head th") == ["step", "forecast", "10 %", "90 %"]
    assert window.run("return document.querySelectorAll('#forecast-chart canvas').length") == 1
    assert "a forecast of 4 steps" in window.run("return document.getElementById('forecast-chart').ariaLabel")
    put(window, "#horizon", "9")
    wait_until(lambda: len(table(window)) == 9, "the horizon has moved")
    assert text(window, "#horizon-value") == "9 steps"
    assert window.console() == []


def test_a_csv_with_times_has_its_columns_and_its_frequency(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-forecast")
    rows = "\n".join(f'2026-01-0{day},"{day},5",{10 * day},x' for day in range(1, 8))
    put(window, "#series", f"day;is,no number,value,note\n{rows}".replace("day;is", "day"))
    wait_until(lambda: not window.run("return document.getElementById('curl').textContent === ''"), "a request is shown")
    wait_until(lambda: sent(window)["instances"][0]["history"] == [10, 20, 30, 40, 50, 60, 70], "the column of numbers is sent")
    (instance,) = sent(window)["instances"]
    expected = {"horizon": 4, "start": "2026-01-01", "frequency": "H"}
    assert {name: instance[name] for name in expected} == expected
    wait_until(lambda: window.texts("#forecast-rows td:first-child")[:1] == ["2026-01-01T07:00:00"], "the steps have times")
    put(window, "#series", "a,b\n1,\n2,5\n,6\n4,7\n")
    wait_until(lambda: sent(window)["instances"][0]["history"] == [1, 2, None, 4], "a gap is null")
    assert window.texts("#column option") == ["a", "b"]
    put(window, "#column", "1", "change")
    wait_until(lambda: sent(window)["instances"][0]["history"] == [None, 5, 6, 7], "the other column is sent")
    assert window.console() == []


def test_a_file_is_dropped_on_the_field(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-forecast")
    window.run(
        "const data = new DataTransfer(); data.items.add(new File(['7\\n8\\n9'], 'a.csv'));"
        "document.getElementById('series').dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}));"
    )
    wait_until(lambda: text(window, "#curl") and sent(window)["instances"][0]["history"] == [7, 8, 9], "the file is sent")


def test_a_model_of_two_features_takes_two_columns_by_name(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-two")
    wait_until(lambda: len(table(window)) == 4, "the example is forecast")
    put(window, "#series", "two,time,one\n1,2026-01-01,10\n2,2026-01-02,20\n")
    wait_until(lambda: sent(window)["instances"][0]["history"] == [[10, 1], [20, 2]], "the columns are in the order of the model")
    put(window, "#frequency", "D", "change")
    wait_until(lambda: sent(window)["instances"][0]["frequency"] == "D", "the frequency is sent")
    wait_until(lambda: window.texts("#forecast-rows td:first-child")[:1] == ["2026-01-03"], "the days go on")
    first = table(window)
    put(window, "#target", "1", "change")
    wait_until(lambda: table(window) != first, "the other target is shown")
    put(window, "#series", "1\n2\n3")
    message = "The model reads 2 columns: one, two. The series has 1."
    wait_until(lambda: message in text(window, "#status"), "it says what is missing")


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ("one two", "is not a number"),
        ("1 2 x", "is not a number"),
        ("a,b\nx,y", "No column"),
        ("5", "at least 2 steps"),
        (",,\n,,", ""),
    ],
)
def test_what_is_no_series_is_said_to_be_none(window: browser.Browser, server: ServerProcess, series: str, message: str) -> None:
    open_page(window, server.url, "toy-forecast")
    wait_until(lambda: len(table(window)) == 4, "the example is forecast")
    put(window, "#series", series)
    wait_until(lambda: text(window, "#status") != "" and message in text(window, "#status"), "the message")


def test_the_label_moves_as_one_types_and_each_word_has_its_score(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-sentiment")
    wait_until(lambda: text(window, "#verdict") != "", "the example is classified")
    put(window, "#text", "")
    wait_until(lambda: text(window, "#verdict") == "", "nothing is classified")
    window.type("#text", "good film it was")

    def shows(given: str) -> bool:
        answer = httpx.post(f"{server.url}/predict", json={"model": "toy-sentiment", "instances": [given]}).json()
        prediction = answer["predictions"][0]
        return text(window, "#verdict") == f"{prediction['label']}, {100 * prediction['score']:.1f} %"

    wait_until(lambda: shows("good film it was"), "the label of what was typed")
    assert sent(window) == {"model": "toy-sentiment", "instances": ["good film it was"], "parameters": {"explain": "prefix"}}
    answer = httpx.post(f"{server.url}/predict", json=sent(window)).json()["predictions"][0]
    values = answer["explanation"]["probabilities"][answer["label"]]
    words = [f"{word}, up to here {100 * value:.1f} %" for word, value in zip(["good", "film", "it", "was"], values, strict=True)]
    assert window.texts("#words li") == words
    assert "after each of 4 words" in window.run("return document.getElementById('words-chart').ariaLabel")
    window.type("#text", " bad")
    wait_until(lambda: len(window.texts("#words li")) == 5, "the next word")
    wait_until(lambda: shows("good film it was bad"), "the next label")
    put(window, "#text", "a " * 300)
    wait_until(lambda: "too long to be explained" in text(window, "#words-note"), "a long text has a label alone")
    assert "parameters" not in sent(window)
    assert window.texts("#words li") == []


def test_an_answer_that_comes_late_is_dropped(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-sentiment")
    wait_until(lambda: text(window, "#verdict") != "", "the example is classified")
    # The answer to the first text comes when the test lets it, after that to the second.
    window.run(
        "const real = window.fetch; window.held = [];"
        "window.fetch = (path, options) => options.body?.includes('slow')"
        " ? new Promise((done) => window.held.push(() => done(real(path, {...options, signal: undefined}))))"
        " : real(path, options);"
    )
    put(window, "#text", "slow bad plot")
    wait_until(lambda: window.run("return window.held.length") == 1, "the first request is under way")
    put(window, "#text", "good film")
    wait_until(lambda: len(window.texts("#words li")) == 2, "the second is shown")
    window.run("window.held[0]()")
    put(window, "#text", "good film it")
    wait_until(lambda: len(window.texts("#words li")) == 3, "the third is shown, and never the first")
    assert "slow" not in text(window, "#words li")


def test_the_requests_that_are_shown_are_those_that_were_sent(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-sentiment")
    hostile = 'it\'s "good" \\ $(id) `id` \u2028 é 😀'
    put(window, "#text", hostile)
    wait_until(lambda: hostile in str(sent(window)["instances"]) or sent(window)["instances"] == [hostile], "curl has the text")
    code = text(window, "#python")
    body = code.split("json=", 1)[1].split(",\n    timeout", 1)[0]
    assert eval(body, {}) == sent(window)
    compile(code, "shown", "exec")
    assert f"{server.url}/predict" in code


def test_another_task_leads_to_the_documentation(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-tensor")
    wait_until(lambda: "toy-tensor is a tensor model" in text(window, "#status"), "the message")
    assert window.run("return [...document.querySelectorAll('section')].every((each) => each.hidden)")


def test_it_works_with_the_keyboard_alone_and_every_field_has_a_label(window: browser.Browser, server: ServerProcess) -> None:
    open_page(window, server.url, "toy-forecast")
    wait_until(lambda: len(table(window)) == 4, "the example is forecast")
    unlabelled = window.run(
        "return [...document.querySelectorAll('input, select, textarea, meter')].filter((each) =>"
        " !each.labels?.length && !each.ariaLabel).map((each) => each.id)"
    )
    assert unlabelled == []
    order = ["model", "key", "use-key", "series", "file", "example-series", "horizon", "curl", "python"]
    seen: list[str] = []
    while "python" not in seen:
        assert len(seen) < 30, seen
        window.press(TAB)
        seen.append(window.run("return document.activeElement.id"))
        if seen[-1] == "horizon":
            window.press(RIGHT, RIGHT)
    assert [name for name in seen if name in order] == order
    wait_until(lambda: len(table(window)) == 6, "the horizon was moved by keys")
    roles = "return [...document.querySelectorAll('[role=img]')].every((each) => each.ariaLabel)"
    assert window.run(roles)
    assert window.run("return document.getElementById('status').role") == "status"


def test_on_a_narrow_screen_nothing_stands_out(window: browser.Browser, server: ServerProcess) -> None:
    try:
        window.resize(500, 900)
        for model in ("toy-forecast", "toy-sentiment"):
            open_page(window, server.url, model)
            wait_until(lambda: text(window, "#curl") != "", "the request is shown")
            fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            wait_until(lambda fits=fits: window.run(fits), "it is as wide as the window")
    finally:
        window.resize(1200, 2000)


def test_names_labels_and_messages_of_a_hostile_model_are_text(window: browser.Browser, tmp_path: Path) -> None:
    labels = (HOSTILE, "javascript:document.title='owned'", "__proto__", "constructor")
    folder = write_text_folder(tmp_path, labels=labels)
    edit_manifest(folder, lambda manifest: manifest.update(description=HOSTILE))
    edit_manifest(folder, lambda manifest: manifest["classify"].update(language=HOSTILE))
    write_forecast_folder(tmp_path, features=(HOSTILE, '"a,b"'))
    (tmp_path / "<b>broken").mkdir()
    with server_process(tmp_path, SLUICE_STRICT_READINESS="false") as server:
        open_page(window, server.url, "toy-sentiment")
        put(window, "#text", HOSTILE)
        wait_until(lambda: len(window.texts("#probabilities li")) == len(labels), "all labels are shown")
        assert text(window, "#about") == HOSTILE
        assert set(window.texts("#probabilities li span:first-child")) == set(labels)
        wait_until(lambda: len(window.texts("#words li")) == len(HOSTILE.split()), "its words are shown")
        put(window, "#model", "toy-forecast", "change")
        wait_until(lambda: len(table(window)) == 4, "the example is forecast")
        put(window, "#series", "1\n2\n3")
        wait_until(lambda: HOSTILE in text(window, "#status"), "the message names the features")
        assert window.run("return document.title") == "Sluice: playground"
        assert window.run("return document.querySelectorAll('main img, main script, main b').length") == 0
        assert window.console() == []


def test_with_keys_the_page_asks_for_one_and_keeps_it_to_itself(window: browser.Browser, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_text_folder(models)
    write_forecast_folder(models)
    key = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry(key, "reader", scopes=["predict"], models=["toy-sentiment"]))
    with server_process(models, SLUICE_API_KEYS_FILE=str(file)) as server:
        window.open("about:blank")
        window.console()
        window.open(f"{server.url}/play")
        wait_until(lambda: "needs a valid API key" in text(window, "#status"), "it says that a key is needed")
        for wrong in ("sluice_wrong", "\u2603"):
            put(window, "#key", wrong)
            window.click("#use-key")
            wait_until(lambda: text(window, "#status") != "", "a wrong key opens nothing")
            assert window.texts("#model option") == []
        put(window, "#key", key)
        window.click("#use-key")
        wait_until(lambda: text(window, "#verdict") != "", "the key opens it")
        assert window.texts("#model option") == ["toy-sentiment"]
        shown = window.run("return document.documentElement.outerHTML + location.href")
        assert key not in shown
        assert "$KEY" in text(window, "#curl")
        assert "os.environ['KEY']" in text(window, "#python")
        kept = "return [document.cookie, localStorage.length, sessionStorage.length, history.state]"
        assert window.run(kept) == ["", 0, 0, None]
