"""The loop: it learns, stops when it should, and a resumed run ends where an uninterrupted one does."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from training.fitting.fit import Epoch, FitError, FitResult, average_of, fit
from training.fitting.losses import Batch, classify_loss, forecast_loss, pinball
from training.fitting.optimizers import group_parameters, make_optimizer, make_schedule
from training.fitting.relative import percentage_error, size_weight, symmetric_error
from training.layers.bases import BaseConfig
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkError
from training.recipe import Fit

NUM_BATCHES = 5


def make_network(**options: Any) -> Network:
    torch.manual_seed(0)
    layers: tuple[dict[str, Any], ...] = (
        {"type": "lstm", "units": 4},
        {"type": "dropout", "rate": 0.2},
        {"type": "dense"},
    )
    return Network(ForecastSpec(layers=layers, horizon=2, **options))


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(NUM_BATCHES):
        yield make_batch(generator)


def make_batch(generator: torch.Generator) -> Batch:
    start = torch.rand(8, 1, 1, generator=generator)
    steps = start + 0.1 * torch.arange(8).view(1, 8, 1)
    return {"history": steps[:, :6], "lengths": torch.full((8,), 6), "future": steps[:, 6:]}


LOSS = forecast_loss("mse", ())
HELD_OUT = make_batch(torch.Generator().manual_seed(1000))


def validate(network: Network) -> float:
    return float(LOSS(network, network.predict(HELD_OUT), HELD_OUT).detach())


def run(folder: Path, *, resume: bool = False, console: Console | None = None, **settings: Any) -> tuple[Network, FitResult]:
    network = make_network()
    options = Fit.model_validate({"loss": "mse", "epochs": 6, "learning_rate": 0.01, **settings})
    fitted = fit(
        network,
        LOSS,
        batches,
        NUM_BATCHES,
        validate,
        options,
        seed=3,
        folder=folder,
        resume=resume,
        console=console or Console(file=io.StringIO()),
        accelerator="cpu",
    )
    return network, fitted


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_fitting_makes_the_loss_small_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    network, fitted = run(tmp_path)
    assert [epoch.number for epoch in fitted.epochs] == [1, 2, 3, 4, 5, 6]
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss
    assert fitted.best == min(fitted.epochs, key=lambda epoch: epoch.validation)
    assert not network.training
    assert validate(network) == pytest.approx(fitted.best.validation, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"average": 0.8}, {"schedule": "cosine"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole, expected = run(tmp_path / "whole", **settings)

    class Interrupted(Exception):
        pass

    epochs: list[float] = []

    def validate_twice(network: Network) -> float:
        epochs.append(validate(network))
        if len(epochs) == 4:
            raise Interrupted
        return epochs[-1]

    options = Fit.model_validate({"loss": "mse", "epochs": 6, "learning_rate": 0.01, **settings})
    silent = Console(file=io.StringIO())
    with pytest.raises(Interrupted):
        fit(
            make_network(), LOSS, batches, NUM_BATCHES, validate_twice, options,
            seed=3, folder=tmp_path / "parts", console=silent, accelerator="cpu",
        )  # fmt: skip
    parts, fitted = run(tmp_path / "parts", resume=True, **settings)

    assert fitted.epochs == expected.epochs
    assert torch.equal(weights(parts), weights(whole))


def test_the_loop_stops_in_the_middle_of_an_epoch_when_its_minutes_are_over(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted(epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(epoch)):
            seen.append(number)
            yield batch

    options = Fit.model_validate({"loss": "mse", "epochs": 6, "minutes": 1e-9})
    silent = Console(file=io.StringIO())
    network = make_network()
    fitted = fit(
        network, LOSS, counted, NUM_BATCHES, validate, options, seed=3, folder=tmp_path, console=silent, accelerator="cpu"
    )  # fmt: skip
    assert len(seen) < NUM_BATCHES
    assert [epoch.number for epoch in fitted.epochs] == [1]
    assert fitted.best.validation == pytest.approx(validate(network), rel=1e-5)


def test_epochs_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    trained: list[int] = []

    def counted(epoch: int) -> Iterator[Batch]:
        for batch in batches(epoch):
            trained.append(epoch)
            yield batch

    worse = iter([1.0, 2.0, 3.0, 4.0])
    for resume, num_epochs in ((False, 3), (True, 3), (True, 4)):
        fitted = fit(
            make_network(),
            LOSS,
            counted,
            NUM_BATCHES,
            lambda _: next(worse),
            Fit(loss="mse", epochs=num_epochs),
            seed=0,
            folder=tmp_path,
            resume=resume,
            console=Console(file=io.StringIO()),
            accelerator="cpu",
        )
    assert trained == [epoch for epoch in range(4) for _ in range(NUM_BATCHES)]
    assert fitted.best.number == 1
    assert len(fitted.epochs) == 4


def test_an_interrupted_run_says_so_to_its_caller_and_can_be_resumed(tmp_path: Path) -> None:
    def interrupted(network: Network) -> float:
        if (tmp_path / "last.ckpt").exists():
            raise KeyboardInterrupt
        return validate(network)

    handler = signal.getsignal(signal.SIGINT)
    options = Fit(loss="mse", epochs=6, learning_rate=0.01)
    with pytest.raises(KeyboardInterrupt):
        fit(
            make_network(), LOSS, batches, NUM_BATCHES, interrupted, options,
            seed=3, folder=tmp_path, console=Console(file=io.StringIO()), accelerator="cpu",
        )  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is handler
    assert run(tmp_path, resume=True)[1].epochs == run(tmp_path / "whole")[1].epochs


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    assert torch.equal(weights(run(tmp_path / "a")[0]), weights(run(tmp_path / "b")[0]))


def test_it_stops_when_nothing_improves(tmp_path: Path) -> None:
    scores = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    fitted = fit(
        make_network(),
        LOSS,
        batches,
        NUM_BATCHES,
        lambda _: next(scores),
        Fit(loss="mse", epochs=5, patience=2),
        seed=0,
        folder=tmp_path,
        console=Console(file=io.StringIO()),
        accelerator="cpu",
    )
    assert [epoch.validation for epoch in fitted.epochs] == [3.0, 2.0, 2.5, 2.5]
    assert fitted.best.number == 2


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"epoch 1: the loss is .* smaller fit.learning_rate"):
        run(tmp_path, optimizer="sgd", learning_rate=1e30)


def test_each_epoch_is_a_line_where_output_is_no_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    _, fitted = run(tmp_path, console=Console(file=output, width=200))
    lines = output.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[0] == f"epoch 1/6  loss {fitted.epochs[0].loss:.4f}  validation {fitted.epochs[0].validation:.4f} *"


def test_a_terminal_shows_epoch_loss_score_and_time_left(tmp_path: Path) -> None:
    output = io.StringIO()
    run(tmp_path, console=Console(file=output, width=200, force_terminal=True))
    for part in ("epoch 6/6", "loss", "validation", "left"):
        assert part in output.getvalue()


def test_optimizers_have_keras_defaults() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]

    def made(**settings: Any) -> dict[str, Any]:
        optimizer = make_optimizer(parameters, Fit.model_validate({"loss": "mse", **settings}))
        return {"kind": type(optimizer).__name__, **optimizer.param_groups[0]}

    def has(found: dict[str, Any], **expected: Any) -> bool:
        return {key: found[key] for key in expected} == expected

    assert has(made(optimizer="sgd"), kind="SGD", lr=0.01, momentum=0.0)
    assert has(made(optimizer="rmsprop"), kind="RMSprop", lr=0.001, alpha=0.9, eps=1e-7)
    assert has(made(), kind="Adam", lr=0.001, eps=1e-7, betas=(0.9, 0.999))
    assert has(made(weight_decay=0.1), kind="AdamW", weight_decay=0.1)
    assert has(made(optimizer="adamw"), kind="AdamW", weight_decay=0.004)


def test_the_moving_average_soon_forgets_the_first_weights_and_then_has_a_long_memory() -> None:
    weight = torch.nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(weight, multi_avg_fn=average_of(0.999))

    def step(value: float) -> float:
        with torch.no_grad():
            weight.weight.fill_(value)
        average.update_parameters(weight)
        return float(next(average.parameters()).detach())

    assert step(1.0) == 1.0  # the first weights
    assert [step(0.0) for _ in range(30)][-1] < 1e-3
    for _ in range(10_000):
        step(0.0)
    assert step(1.0) == pytest.approx(0.001, rel=1e-3)


def test_layers_learn_at_their_own_rates_by_name_or_type() -> None:
    settings = Fit.model_validate({"loss": "mse", "learning_rate": 0.1, "rates": {"lstm": 0.5, "dense_2": 0.25}})
    network = make_network()
    groups = group_parameters(network, settings)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    lstm, _, dense = network.stack
    assert {rates[id(parameter)] for parameter in lstm.parameters()} == {0.05}
    assert {rates[id(parameter)] for parameter in dense.parameters()} == {0.025}
    assert len(rates) == len(list(network.parameters()))
    (plain,) = group_parameters(network, Fit.model_validate({"loss": "mse"}))
    assert (plain["lr"], len(plain["params"])) == (0.001, len(rates))
    for schedule in ("cosine", "onecycle"):
        optimizer = make_optimizer(groups, settings)
        scheduler = make_schedule(optimizer, settings.model_copy(update={"schedule": schedule}), 10)
        assert scheduler is not None
        optimizer.step()
        scheduler.step()
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(2 * second)


def test_a_layer_with_the_rate_zero_stays_as_it_is(tmp_path: Path) -> None:
    network, _ = run(tmp_path, rates={"lstm": 0.0}, epochs=1)
    before = make_network()
    for layer, untrained, is_same in zip(network.stack, before.stack, (True, True, False), strict=True):
        pairs = zip(layer.parameters(), untrained.parameters(), strict=True)
        assert all(torch.equal(found, start) for found, start in pairs) == is_same


def test_training_in_bfloat16_learns_and_leaves_float32_weights(tmp_path: Path) -> None:
    network, fitted = run(tmp_path, precision="bfloat16", clip_norm=1.0)
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not torch.equal(weights(network), weights(run(tmp_path, precision="float32", clip_norm=1.0)[0]))


@pytest.mark.parametrize(("schedule", "first", "last"), [("cosine", 0.01, 0.0), ("onecycle", 0.0004, 0.0)])
def test_schedules_run_over_all_steps(schedule: str, first: float, last: float) -> None:
    settings = Fit.model_validate({"loss": "mse", "schedule": schedule, "learning_rate": 0.01})
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)
    scheduler = make_schedule(optimizer, settings, 10)
    assert scheduler is not None
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 10:
            scheduler.step()
    assert rates[0] == pytest.approx(first)
    assert max(rates) == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(last, abs=3e-4)


@torch.no_grad()
def test_losses_are_what_their_names_say() -> None:
    network = make_network()
    network.eval()
    batch = HELD_OUT
    prediction = network.predict(batch)
    error = batch["future"] - prediction.values
    assert float(LOSS(network, prediction, batch)) == pytest.approx(float((error**2).mean()))
    assert float(forecast_loss("mae", ())(network, prediction, batch)) == pytest.approx(float(error.abs().mean()))
    small = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean()
    assert float(forecast_loss("huber", ())(network, prediction, batch)) == pytest.approx(float(small))


def test_pinball_charges_each_side_by_its_level() -> None:
    prediction = torch.tensor([[[[1.0, 1.0]]], [[[1.0, 1.0]]]])  # (B, horizon, targets, Q)
    target = torch.tensor([[[2.0]], [[0.0]]])
    assert float(pinball(prediction, target, torch.tensor([0.1, 0.9]))) == pytest.approx((0.1 + 0.9 + 0.9 + 0.1) / 4)


@torch.no_grad()
def test_steps_of_the_future_that_are_unknown_do_not_count() -> None:
    network, batch = make_network().eval(), dict(HELD_OUT)
    whole = forecast_loss("mse", ())(network, network.predict(batch), {**batch, "future": batch["future"][:, :1].repeat(1, 2, 1)})
    values = network.predict(batch).values
    expected = (values[:, 0] - batch["future"][:, 0]).square().mean()
    batch["future"] = batch["future"].clone()
    batch["future"][:, 1] = torch.nan
    assert float(LOSS(network, network.predict(batch), batch)) == pytest.approx(float(expected), rel=1e-5)
    assert float(whole) != pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_the_relative_losses_are_smape_and_mape_of_raw_values() -> None:
    network = make_network(quantiles=(0.5,), mape_point=True).eval()
    network.set_statistics(torch.tensor([[1.0], [3.0]]))
    batch = dict(HELD_OUT)
    batch["future"] = 1 + batch["future"]
    prediction = network.predict(batch)
    median, mape = network.head.unscale(prediction.values, prediction).unbind(-1)
    truth = batch["future"]
    symmetric = (2 * (truth - median).abs() / (truth.abs() + median.abs())).mean()
    percentage = ((truth - mape).abs() / truth).mean()
    found = forecast_loss("smape", (0.5,), mape_point=True)(network, prediction, batch)
    assert float(found) == pytest.approx(float(symmetric / 2 + percentage) / 2, rel=1e-5)


@torch.no_grad()
def test_smape_without_quantiles_is_of_the_one_forecast() -> None:
    network = make_network()
    prediction = network.predict(HELD_OUT)
    values, truth = prediction.values, HELD_OUT["future"]
    expected = (2 * (truth - values).abs() / (truth.abs() + values.abs())).mean()
    assert float(forecast_loss("smape", ())(network, prediction, HELD_OUT)) == pytest.approx(float(expected), rel=1e-5)


def test_relative_errors_of_zeros_are_finite_with_their_gradients() -> None:
    forecast, truth = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 1.0])
    for error in (symmetric_error, percentage_error):
        found = error(forecast, truth)
        assert found[0] == 0
        assert torch.autograd.grad(found.sum(), forecast)[0].isfinite().all()


def test_the_gradient_of_a_symmetric_error_does_not_draw_a_high_forecast_higher() -> None:
    forecast, truth = torch.tensor([1.0, 3.0, 9.0, 99.0], requires_grad=True), torch.tensor([2.0, 2.0, 1.0, 1.0])
    (gradient,) = torch.autograd.grad(symmetric_error(forecast, truth).abs().sum(), forecast)
    torch.testing.assert_close(gradient, torch.tensor([-2 / 3, 2 / 5, 2 / 10, 2 / 100]))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_a_symmetric_errors_gradient_goes_through_its_denominator(share: float) -> None:
    forecast, truth = torch.tensor([1.0, 3.0, 9.0, 99.0], requires_grad=True), torch.tensor([2.0, 2.0, 1.0, 1.0])
    error = symmetric_error(forecast, truth, share)
    torch.testing.assert_close(error, symmetric_error(forecast, truth))
    (gradient,) = torch.autograd.grad(error.sum(), forecast)
    size = (truth + forecast).detach()
    by_denominator = -2 * (truth - forecast.detach()) / size**2
    torch.testing.assert_close(gradient, -2 / size + share * by_denominator)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_share_of_the_denominators_gradient_draws_a_forecast_away_from_the_truth(sign: float) -> None:
    forecast = torch.tensor([-50.0, -2.0, -0.5, 0.5, 3.0, 50.0], requires_grad=True)
    truth = torch.full((6,), sign)
    (gradient,) = torch.autograd.grad(symmetric_error(forecast, truth, 1.0).abs().sum(), forecast)
    assert (gradient * (forecast.detach() - truth) >= 0).all()
    assert (gradient != 0).any()


def test_the_loss_takes_its_share_of_the_denominators_gradient() -> None:
    network = make_network(quantiles=(0.1, 0.5, 0.9))
    gradients = []
    for share in (0.0, 0.5):
        prediction = network.predict(HELD_OUT)
        loss = forecast_loss("smape", (0.1, 0.5, 0.9), denominator_gradient=share)(network, prediction, HELD_OUT)
        gradients.append(torch.autograd.grad(loss, prediction.values)[0])
    assert not torch.allclose(gradients[0], gradients[1])


def of_own_bases(**options: Any) -> tuple[Network, Batch]:
    """A network of bases, and what follows two histories of which the second is ten times as far from zero."""
    bases = (BaseConfig(lag=1), BaseConfig(lag=2))
    own = {"bases": bases, "context_length": 6, "read_length": 2, "season_length": 2, "scaling": {"kind": "seasonal"}}
    steps = 5 + torch.rand(2, 8, 1, generator=torch.Generator().manual_seed(0))
    steps[1] += 50
    network = make_network(**own, **options).eval()
    return network, {"history": steps[:, :6], "lengths": torch.full((2,), 6), "future": steps[:, 6:]}


def test_a_relative_weight_adds_the_loss_of_errors_over_the_median() -> None:
    levels = (0.1, 0.5, 0.9)
    network, batch = of_own_bases(quantiles=levels)
    prediction = network.predict(batch)
    plain, weighed = (
        forecast_loss("quantile", levels, relative_weight=weight)(network, prediction, batch).item() for weight in (0.0, 3.0)
    )
    quantiles = network.head.unscale(prediction.values, prediction)
    relative_error = (batch["future"].unsqueeze(-1) - quantiles) / quantiles[..., 1:2]
    expected = np.mean([pinball_of(relative_error[..., place], level) for place, level in enumerate(levels)])
    assert weighed == pytest.approx(plain + 3 * expected, rel=1e-4)


def pinball_of(error: torch.Tensor, level: float) -> float:
    return torch.maximum(level * error, (level - 1) * error).mean().item()


def test_low_forecasts_weigh_more_and_those_about_zero_no_more_than_a_scale() -> None:
    median = torch.tensor([-200.0, -0.1, 0.0, 0.5, 50.0], requires_grad=True)
    weights = size_weight(median, torch.tensor(2.0))
    assert not weights.requires_grad
    np.testing.assert_allclose(weights, [0.01, 1, 1, 1, 0.04])


def test_a_value_near_zero_counts_no_more_than_ten_times_itself() -> None:
    assert percentage_error(torch.tensor([5.0, 1.5, 4.0]), torch.tensor([0.001, 1.0, 1.0])).tolist() == [10.0, 0.5, 3.0]


def test_the_moving_average_forgets_its_first_weights(tmp_path: Path) -> None:
    network, _ = run(tmp_path / "a", average=0.999, epochs=12)
    plain, _ = run(tmp_path / "b", epochs=12)
    first = weights(make_network())
    assert (weights(network) - first).norm() > 0.5 * (weights(plain) - first).norm()


def test_the_layers_of_all_members_learn_at_their_rate() -> None:
    settings = Fit(loss="mse", learning_rate=0.1, rates={"lstm": 0.5})
    groups, of_one = (group_parameters(make_network(members=members), settings) for members in (3, 1))
    numbers = {group["lr"]: sum(parameter.numel() for parameter in group["params"]) for group in groups}
    alone = {group["lr"]: sum(parameter.numel() for parameter in group["params"]) for group in of_one}
    assert numbers == {rate: 3 * number for rate, number in alone.items()}
    assert set(numbers) == {0.05, 0.1}


def test_the_last_epoch_is_kept_on_request(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    kept: list[torch.Tensor] = []

    def score(network: Network) -> float:
        kept.append(weights(network))
        return next(scores)

    network = make_network()
    options = Fit(loss="mse", epochs=3, learning_rate=0.01, keep="last")
    console = Console(file=io.StringIO())
    fitted = fit(network, LOSS, batches, NUM_BATCHES, score, options, seed=3, folder=tmp_path, console=console, accelerator="cpu")
    assert fitted.best.number == 3
    assert weights(network).equal(kept[2])


@pytest.mark.parametrize(("activation", "fitting"), [("sigmoid", "binary_crossentropy"), ("softmax", "categorical_crossentropy")])
@torch.no_grad()
def test_crossentropy_is_of_the_networks_own_probabilities_and_needs_its_head(activation: str, fitting: Any) -> None:
    torch.manual_seed(0)
    layers: tuple[dict[str, Any], ...] = (
        {"type": "embedding", "output_dim": 3},
        {"type": "global_max_pooling"},
        {"type": "dense", "activation": activation},
    )
    network = Network(ClassifySpec(layers=layers, vocabulary_size=9, labels=("a", "b")))
    batch = {"tokens": torch.tensor([[3, 4], [5, 0]]), "lengths": torch.tensor([2, 1])}
    batch["shares"] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    probabilities = network(batch)["probabilities"]
    prediction = network.predict(batch)
    expected = -(probabilities[0, 1].log() + probabilities[1, 0].log()) / 2
    assert float(classify_loss(fitting)(network, prediction, batch)) == pytest.approx(float(expected), rel=1e-5)
    other_way = -(probabilities[0, 0].log() + probabilities[1, 1].log()) / 2
    smoothed = classify_loss(fitting, 0.2)(network, prediction, batch)
    assert float(smoothed) == pytest.approx(float(0.9 * expected + 0.1 * other_way), rel=1e-5)
    given = {**batch, "shares": torch.tensor([[0.3, 0.7], [1.0, 0.0]])}
    shared = -(0.3 * probabilities[0, 0].log() + 0.7 * probabilities[0, 1].log() + probabilities[1, 0].log()) / 2
    assert float(classify_loss(fitting)(network, prediction, given)) == pytest.approx(float(shared), rel=1e-5)
    other = "categorical_crossentropy" if fitting == "binary_crossentropy" else "binary_crossentropy"
    with pytest.raises(NetworkError, match="needs a last layer with"):
        classify_loss(other)(network, prediction, batch)  # type: ignore[arg-type]


def test_fitted_tells_its_state() -> None:
    epoch = Epoch(1, 0.5, 0.25)
    assert repr(replace(FitResult((epoch,), epoch, 1.0))).startswith("FitResult(1 epochs, best Epoch(number=1")
