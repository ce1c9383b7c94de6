"""The loop: epochs of batches until the validation score no longer improves, with checkpoints to resume from.

Lightning's Trainer turns the crank. What a batch is and what is scored come in as functions; all randomness follows from
(seed, epoch), so a resumed run goes on exactly where the interrupted one would have.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.errors import TrainingError
from training.fitting.losses import Batch, LossFunction
from training.network.network import Network
from training.recipe import Fit

LAST, BEST = "last.ckpt", "best.ckpt"

Batches = Callable[[int], Iterable[Batch]]  # of the epoch of this number, from 0
Validate = Callable[[Network], float]  # smaller is better


class FitError(TrainingError):
    """The loop cannot go on: no checkpoint to resume from, or a loss that is no number."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave."""

    number: int  # from 1
    loss: float
    validation: float


@dataclass(frozen=True)
class Fitted:
    """The epochs in order, and the one whose weights the network now has."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    duration_s: float

    def __repr__(self) -> str:
        return f"Fitted({len(self.epochs)} epochs, best {self.best})"


def fit(
    network: Network,
    loss: LossFunction,
    batches: Batches,
    num_batches: int,
    validate: Validate,
    settings: Fit,
    *,
    seed: int,
    folder: Path,
    resume: bool = False,
    console: Console | None = None,
    score_name: str = "validation",
    accelerator: str = "auto",
) -> Fitted:
    """Train `network` in place and leave it on the CPU, in eval mode, with the best epoch's weights.

    Checkpoints lie in `folder`: `last.ckpt` after every epoch, `best.ckpt`. With `resume` the run goes on from the last
    one; without, they are replaced. Raises FitError: nothing to resume from, or a loss that is not finite; and
    KeyboardInterrupt, after which the run can be resumed.
    """
    last = folder / LAST
    if resume and not last.exists():
        raise FitError(f"nothing to resume: there is no {last}")
    if not resume:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    display = _Display(console or Console(), settings.epochs, num_batches, score_name)
    loop = _Loop(network, loss, batches, num_batches, validate, settings, seed, display.show)
    started = time.monotonic()
    best_of_all = ModelCheckpoint(folder, filename="best", monitor="validation", enable_version_counter=False)
    # Without a score to watch, a ModelCheckpoint keeps the newest; its own `save_last` would keep the last best. It comes
    # after the other one, whose memory of the best score it keeps.
    newest = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    callbacks: list[Callback] = [display, best_of_all, newest]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("validation", patience=settings.patience, check_on_train_epoch_end=True))
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip_norm or None,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            # The checkpoints are this run's own; they hold plain tensors and numbers.
            trainer.fit(loop, ckpt_path=str(last) if resume else None, weights_only=False)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit, and is deaf to it from then on.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
    loop.load_best(folder / BEST)
    network.cpu().eval()
    epochs = tuple(loop.epochs)
    best = min(epochs, key=lambda epoch: epoch.validation)
    return Fitted(epochs, best, time.monotonic() - started)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints about loggers, workers and devices are no news to whoever trains on one machine."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", module=r"torch\.")
        try:
            yield
        finally:
            logger.setLevel(level)


def make_optimizer(parameters: Iterable[Tensor], settings: Fit) -> optim.Optimizer:
    """An optimizer with Keras's defaults, which differ from torch's in epsilon and, for rmsprop, in rho."""
    rate = settings.learning_rate or (0.01 if settings.optimizer == "sgd" else 0.001)
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
    rate = optimizer.param_groups[0]["lr"]
    match settings.schedule:
        case "cosine":
            return optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        case "onecycle":
            return optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=num_steps)
        case "none":
            return None


class _Epoch:
    """One epoch's batches with their number, as Lightning wants it."""

    def __init__(self, batches: Iterable[Batch], num_batches: int) -> None:
        self._batches = batches
        self._num_batches = num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class _Loop(lightning.LightningModule):
    def __init__(
        self,
        network: Network,
        loss: LossFunction,
        batches: Batches,
        num_batches: int,
        validate: Validate,
        settings: Fit,
        seed: int,
        show: Callable[[Epoch], None],
    ) -> None:
        super().__init__()
        self.network = network
        self.average: AveragedModel | None = None
        if settings.average:
            average = get_ema_multi_avg_fn(settings.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(network, multi_avg_fn=average)
        self.settings = settings
        self.epochs: list[Epoch] = []
        self._loss = loss
        self._batches = batches
        self._num_batches = num_batches
        self._validate = validate
        self._seed = seed
        self._show = show
        self.sum_of_losses = torch.zeros(())

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the averaged one, if there is one."""
        kept = self.network if self.average is None else self.average.module
        assert isinstance(kept, Network)
        return kept

    def train_dataloader(self) -> _Epoch:
        return _Epoch(self._batches(self.current_epoch), self._num_batches)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.network.parameters(), self.settings)
        schedule = make_schedule(optimizer, self.settings, self.settings.epochs * self._num_batches)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self._seed * 1_000_003 + self.current_epoch)
        self.sum_of_losses = torch.zeros((), device=self.device)
        self.network.reset_states()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = self._loss(self.network, batch) + self.network.penalty()
        self.sum_of_losses += loss.detach()
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        self.network.constrain()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_train_epoch_end(self) -> None:
        mean_loss = float(self.sum_of_losses) / self._num_batches
        if not math.isfinite(mean_loss):
            raise FitError(
                f"epoch {self.current_epoch + 1}: the loss is {mean_loss}: try a smaller fit.learning_rate or a fit.clip_norm"
            )
        self.kept.eval()
        with torch.no_grad():
            score = self._validate(self.kept)
        self.network.train()
        self.epochs.append(Epoch(self.current_epoch + 1, mean_loss, score))
        self._show(self.epochs[-1])
        self.log("validation", torch.tensor(score, dtype=torch.float64), prog_bar=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epochs"] = [(epoch.number, epoch.loss, epoch.validation) for epoch in self.epochs]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epochs = [Epoch(*epoch) for epoch in checkpoint["epochs"]]

    def load_best(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
        prefix = "average.module." if self.average is not None else "network."
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class _Display(Callback):
    """The live line: epoch, loss, validation score, time left. Where output is no terminal, a line per epoch."""

    def __init__(self, console: Console, num_epochs: int, num_batches: int, score_name: str) -> None:
        self._console = console
        self._num_epochs = num_epochs
        self._num_batches = num_batches
        self._score_name = score_name
        self._best = math.inf
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[validation]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, _Loop)
        self._best = min((epoch.validation for epoch in module.epochs), default=math.inf)
        done = trainer.current_epoch * self._num_batches
        total = self._num_epochs * self._num_batches
        self._task = self._progress.add_task("", total=total, completed=done, epoch="", loss="", validation="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._progress.advance(self._task)
        # Reading the loss waits for the device: a few times per epoch is enough to watch.
        if self._console.is_terminal and index % max(1, self._num_batches // 20) == 0:
            assert isinstance(module, _Loop)
            loss = float(module.sum_of_losses) / (index + 1)
            self._progress.update(self._task, epoch=f"{trainer.current_epoch + 1}/{self._num_epochs}", loss=f"{loss:.4f}")

    def show(self, epoch: Epoch) -> None:
        """Print an epoch's line."""
        is_best = epoch.validation < self._best
        self._best = min(self._best, epoch.validation)
        score = f"{self._score_name} {epoch.validation:.4f}{' *' if is_best else ''}"
        self._progress.update(self._task, validation=score)
        self._console.print(f"epoch {epoch.number}/{self._num_epochs}  loss {epoch.loss:.4f}  {score}", highlight=False)

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self._progress.stop()
