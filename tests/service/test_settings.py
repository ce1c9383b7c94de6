"""What an operator can set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, environment_name, read_settings, settings_table


def test_without_any_name_every_setting_has_its_default() -> None:
    assert read_settings({}) == Settings()


def test_names_are_read_with_their_types() -> None:
    settings = read_settings({"SLUICE_PORT": "9001", "SLUICE_MODELS": "/srv/models", "SLUICE_MAX_QUEUE_DELAY_MS": "1.5"})
    assert (settings.port, settings.models, settings.max_queue_delay_ms) == (9001, Path("/srv/models"), 1.5)


def test_names_of_others_are_left_alone() -> None:
    assert read_settings({"PATH": "/bin", "PORT": "1", "SLUICE_DATA": "/data"}) == Settings()


def test_what_kubernetes_says_of_a_service_named_sluice_is_no_setting() -> None:
    links = {
        "SLUICE_SERVICE_HOST": "10.96.0.12",
        "SLUICE_SERVICE_PORT": "8000",
        "SLUICE_SERVICE_PORT_HTTP": "8000",
        "SLUICE_PORT": "tcp://10.96.0.12:8000",
        "SLUICE_PORT_8000_TCP": "tcp://10.96.0.12:8000",
        "SLUICE_PORT_8000_TCP_PROTO": "tcp",
        "SLUICE_PORT_8000_TCP_PORT": "8000",
        "SLUICE_PORT_8000_TCP_ADDR": "10.96.0.12",
    }
    assert read_settings(links) == Settings()
    assert read_settings(links | {"SLUICE_PORT": "9000"}).port == 9000


def test_an_empty_value_means_the_default() -> None:
    assert read_settings({"SLUICE_PORT": "", "SLUICE_DEFAULT_FORECAST_MODEL": ""}) == Settings()


def test_an_argument_wins_over_the_environment() -> None:
    assert read_settings({"SLUICE_PORT": "9001"}, port=9002).port == 9002


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SLUICE_PROT": "1"}, "SLUICE_PROT is not a setting; did you mean SLUICE_PORT?"),
        ({"SLUICE_BATCH_SIZE": "1"}, "SLUICE_BATCH_SIZE is not a setting; did you mean SLUICE_MAX_BATCH_SIZE?"),
        ({"SLUICE_QQQQQ": "1"}, "SLUICE_QQQQQ is not a setting; `python -m service settings` lists what there is"),
        ({"SLUICE_PORT": "eighty"}, "SLUICE_PORT=eighty: Input should be a valid integer"),
        ({"SLUICE_WORKERS": "-1"}, "SLUICE_WORKERS=-1: Input should be greater than or equal to 0"),
        ({"SLUICE_DEVICE": "tpu"}, "SLUICE_DEVICE=tpu: Input should be 'auto', 'cpu', 'cuda' or 'tensorrt'"),
    ],
)
def test_a_wrong_name_or_value_is_refused_in_plain_words(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    assert caught.value.message.startswith(message)


def test_the_table_explains_every_setting() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    for field, row in zip(Settings.model_fields, rows, strict=True):
        name, default, text = (cell.strip() for cell in row.strip("|").split("|"))
        assert name == f"`{environment_name(field)}`"
        assert default
        assert text.endswith(".")


def test_the_variables_of_vertex_ai_and_sagemaker_are_defaults() -> None:
    vertex = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict", "AIP_HEALTH_ROUTE": "/v1/endpoints/1"}
    settings = read_settings(vertex)
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.vertex_predict_route, settings.vertex_health_route) == ("/v1/endpoints/1:predict", "/v1/endpoints/1")
    assert read_settings({"SAGEMAKER_BIND_TO_PORT": "8081"}).port == 8081
    assert read_settings({"SAGEMAKER_BIND_TO_PORT": "8081", "SLUICE_PORT": "9000", "SLUICE_HOST": "127.0.0.1"}).port == 9000
    assert read_settings({}).host == "127.0.0.1"
    with pytest.raises(SettingsError):
        read_settings({"AIP_PREDICT_ROUTE": "/{name}"})
