"""The loop: epochs of batches until the validation score no longer improves, with checkpoints to resume from.

Lightning's Trainer runs it; only this file imports Lightning. What a batch is and what is scored are arguments; all randomness
follows from (seed, epoch), so a resumed run goes on exactly where the interrupted one would have. The loop holds the state
that a stateful network carries from one batch to the next. Several processes draw the same batches, and each learns from its
rows of them.
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
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.errors import TrainingError
from training.fitting.adversarial import add_adversarial_loss, zero_perturbation
from training.fitting.checkpoints import BEST, LAST, CheckpointError, load_checkpoint, remove_checkpoints
from training.fitting.losses import Batch, LossFunction
from training.fitting.optimizers import group_parameters, make_optimizer, make_schedule
from training.network.heads.head import Prediction
from training.network.network import Network
from training.recipe import Fit

Batches = Callable[[int], Iterable[Batch]]  # of the epoch of this number, from 0
Validate = Callable[[Network], float]  # smaller is better


class FitError(TrainingError):
    """The loop cannot go on: the loss is no number."""


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch."""

    number: int  # from 1
    loss: float
    validation: float


@dataclass(frozen=True)
class FitResult:
    """The epochs in order, and the one whose weights the network has now: the best one, unless the last is to be kept."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    duration_s: float

    def __repr__(self) -> str:
        return f"FitResult({len(self.epochs)} epochs, best {self.best})"


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
    adversarial: float = 0.0,
) -> FitResult:
    """Train `network` in place and leave it on the CPU, in eval mode, with the weights of the best or of the last epoch (`keep`).

    Checkpoints lie in `folder`: `last.ckpt` after every epoch, `best.ckpt`. With `resume` the run goes on from the last
    one; without, they are replaced. Raises CheckpointError: nothing to resume from, or a file that is no checkpoint of this
    network; FitError: a loss that is not finite, or a network that several processes cannot share; and KeyboardInterrupt, after
    which the run can be resumed. With several processes only the first returns: the others raise SystemExit(0).

    With `adversarial` the loss of rows of tokens is also that of the rows with their adversarial perturbation of that size
    (`fitting/adversarial.py`).
    """
    if settings.devices * settings.num_nodes > 1 and len(network.members) > 1:
        raise FitError("an ensemble learns in one process: each member has rows of its own; set fit.devices = 1")
    last = folder / LAST
    display = _Display(console or Console(), settings.epochs, num_batches, score_name)
    loop = _Loop(network, loss, batches, num_batches, validate, settings, seed, display.show, adversarial)
    if resume:
        loop.check_checkpoint(last)
    else:
        remove_checkpoints(folder)
        folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _without_hints():
        trainer = _make_trainer(settings, folder, display, accelerator)
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(loop, ckpt_path=str(last) if resume else None, weights_only=True)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit, and ignores it from then on.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
    if not trainer.is_global_zero:
        raise SystemExit(0)
    loop.load(folder / (BEST if settings.keep == "best" else LAST))
    network.cpu().eval()
    epochs = tuple(loop.epochs)
    best = min(epochs, key=lambda epoch: epoch.validation) if settings.keep == "best" else epochs[-1]
    return FitResult(epochs, best, time.monotonic() - started)


def _make_trainer(settings: Fit, folder: Path, display: _Display, accelerator: str) -> lightning.Trainer:
    best_of_all = ModelCheckpoint(folder, filename="best", monitor="validation", enable_version_counter=False)
    # Without a score to watch, a ModelCheckpoint keeps the newest; its own `save_last` would keep the last best. It comes
    # after the other one, whose memory of the best score it keeps.
    newest = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    callbacks: list[Callback] = [display, best_of_all, newest]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("validation", patience=settings.patience, check_on_train_epoch_end=True))
    return lightning.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        max_epochs=settings.epochs,
        # Of no time at all not even one batch would come.
        max_time=None if settings.minutes is None else max(timedelta(minutes=settings.minutes), timedelta.resolution),
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


@contextmanager
def _without_hints() -> Iterator[None]:
    """Without Lightning's hints about loggers, workers and devices, which do not apply to one machine."""
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


class _Epoch:
    """One epoch's batches with their number, in the form that Lightning needs."""

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
        adversarial: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.average: AveragedModel | None = None
        if settings.average:
            self.average = AveragedModel(network, multi_avg_fn=average_of(settings.average))
            self.average.requires_grad_(False)  # or several processes would wait for gradients of it
        self.settings = settings
        self.epochs: list[Epoch] = []
        self._loss = loss
        self._batches = batches
        self._num_batches = num_batches
        self._validate = validate
        self._seed = seed
        self._show = show
        self._adversarial = adversarial
        self._state: dict[str, Tensor] = {}  # where a stateful network's next batch starts
        self.sum_of_losses = torch.zeros(())
        self._num_done = 0  # batches of this epoch

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the averaged one, if there is one."""
        kept = self.network if self.average is None else self.average.module
        assert isinstance(kept, Network)
        return kept

    def train_dataloader(self) -> _Epoch:
        return _Epoch(self._batches(self.current_epoch), self._num_batches)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(group_parameters(self.network, self.settings), self.settings)
        schedule = make_schedule(optimizer, self.settings, self.settings.epochs * self._num_batches)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self._seed * 1_000_003 + self.current_epoch)
        self.sum_of_losses = torch.zeros((), device=self.device)
        self._num_done = 0
        self._state = {}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        batch, weight = share_of(batch, self.global_rank, self.trainer.world_size)
        if self.network.is_stateful and not self._state:
            self._state = self.network.initial_state(len(next(iter(batch.values()))), self.device)
        inputs = {**batch, **self._state}

        def predict(perturbation: Tensor | None = None) -> Prediction:
            # Not Lightning's own precision: that refuses to clip the gradients of a fused optimizer.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                return self.network.predict(inputs, perturbation)

        if self._adversarial:
            start = zero_perturbation(self.network, batch)
            prediction = predict(start)
            found = add_adversarial_loss(self._loss, self.network, batch, predict, prediction, start, self._adversarial)
        else:
            prediction = predict()
            found = self._loss(self.network, prediction, batch)
        self._state = {name: tensor.detach() for name, tensor in prediction.state.items()}
        loss = weight * found + self.network.penalty(prediction)
        self.sum_of_losses += loss.detach()
        self._num_done += 1
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        self.network.constrain()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_train_epoch_end(self) -> None:
        mean_loss = float(torch.as_tensor(self.all_gather(self.sum_of_losses)).mean()) / max(1, self._num_done)
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

    def check_checkpoint(self, path: Path) -> None:
        """Raise CheckpointError unless the file is a checkpoint of this network."""
        found = {name: list(tensor.shape) for name, tensor in load_checkpoint(path)["state_dict"].items()}
        expected = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        for name in [*expected, *found]:
            if found.get(name) != expected.get(name):
                difference = f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
                raise CheckpointError(f"{path} is a checkpoint of another network: {difference}")

    def load(self, path: Path) -> None:
        """Give the network the weights of a checkpoint of this run."""
        state = load_checkpoint(path)["state_dict"]
        prefix = "average.module." if self.average is not None else "network."
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def share_of(batch: Batch, rank: int, num_processes: int) -> tuple[Batch, float]:
    """The rows of a batch that one of several processes learns from, and what their mean loss counts.

    The mean over all processes is then the mean over all rows, though shares may differ by a row. A batch of fewer rows than
    processes is everybody's.
    """
    num_rows = len(next(iter(batch.values())))
    if num_processes == 1 or num_rows < num_processes:
        return batch, 1.0
    share = {name: tensor[rank::num_processes] for name, tensor in batch.items()}
    return share, len(next(iter(share.values()))) * num_processes / num_rows


def average_of(decay: float) -> Any:
    """A moving average that begins with a short memory, so that the first random weights are soon forgotten.

    Its decay after n steps is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage.
    """

    def update(averaged: Any, current: Any, num_steps: Tensor | int) -> None:
        reached = min(decay, (1 + int(num_steps)) / (10 + int(num_steps)))
        get_ema_multi_avg_fn(reached)(averaged, current, num_steps)  # type: ignore[no-untyped-call]

    return update


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
