"""Optimizers and learning rates as Keras has them, in torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, optim

from training.network.network import Network
from training.recipe import Fit, names_of_layer


def make_optimizer(parameters: Iterable[Tensor] | Iterable[dict[str, Any]], settings: Fit) -> optim.Optimizer:
    """An optimizer with Keras's defaults, which differ from torch's in epsilon and, for rmsprop, in rho."""
    rate = learning_rate(settings)
    decay = settings.weight_decay
    match settings.optimizer:
        case "sgd":
            return optim.SGD(parameters, rate, momentum=settings.momentum, weight_decay=decay or 0.0)
        case "rmsprop":
            return optim.RMSprop(parameters, rate, alpha=0.9, eps=1e-7, momentum=settings.momentum)
        case "adam" if not decay:
            # Fused: a step over 11 million weights takes 0.06 s instead of 0.32 on one core, by the same formula.
            return optim.Adam(parameters, rate, eps=1e-7, fused=True)
        case _:
            # Keras decays weights apart from the gradient with any optimizer: for Adam that is AdamW.
            decay = 0.004 if decay is None else decay
            return optim.AdamW(parameters, rate, eps=1e-7, weight_decay=decay, fused=True)


def make_schedule(optimizer: optim.Optimizer, settings: Fit, num_steps: int) -> optim.lr_scheduler.LRScheduler | None:
    """The learning rate over all steps of the run: none, cosine down to zero, or one cycle (Smith 2018)."""
    match settings.schedule:
        case "cosine":
            return optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        case "onecycle":
            return optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=num_steps
            )
        case "none":
            return None


def learning_rate(settings: Fit) -> float:
    """The recipe's, or else Keras's default."""
    return settings.learning_rate or (0.01 if settings.optimizer == "sgd" else 0.001)


def rate_factor(settings: Fit, kind: str, name: str) -> float:
    """What `fit.rates` has for a layer, by its name or else by its kind."""
    return settings.rates.get(name, settings.rates.get(kind, 1.0))


def group_parameters(network: Network, settings: Fit) -> list[dict[str, Any]]:
    """The network's parameters with their learning rates: the recipe's times the factor that `fit.rates` has for a layer."""
    rate = learning_rate(settings)
    groups: dict[float, list[Any]] = {}
    given: set[int] = set()
    for index, (table, *layers) in enumerate(zip(network.spec.layers, *network.members, strict=True)):
        kind, name = names_of_layer(table, index)
        factor = rate_factor(settings, kind, name)
        found = [parameter for layer in layers for parameter in layer.parameters()]
        given.update(map(id, found))
        groups.setdefault(factor, []).extend(found)
    rest = [parameter for parameter in network.parameters() if id(parameter) not in given]
    groups.setdefault(1.0, []).extend(rest)
    return [{"params": found, "lr": rate * factor} for factor, found in groups.items() if found]
