"""The training loop: steps, epochs, validation, callbacks, checkpoints."""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.backend.numpy.memory import trim
from xpcnn.distributed import Communicator
from xpcnn.errors import ConfigError, DataError, NonFiniteError
from xpcnn.functional.part import Part, computing
from xpcnn.nn import Module
from xpcnn.optim import GradScaler, Optimizer, Schedule
from xpcnn.optim.groups import check_count
from xpcnn.training.arguments import check_it_lasts, check_options, check_parts, what_it_counts
from xpcnn.training.batches import check_arrays, check_batches, unpack
from xpcnn.training.callbacks import Callback, methods, validation_weights
from xpcnn.training.checkpoint import Checkpointer, State
from xpcnn.training.diagnosis import out_of_memory
from xpcnn.training.evaluation import evaluate
from xpcnn.training.history import History
from xpcnn.training.interrupt import Interruption, interruptible, unbroken
from xpcnn.training.metrics import Metrics, RunningAverage, has_accuracy
from xpcnn.training.monitor import latest
from xpcnn.training.predictor import BATCH, Predicting
from xpcnn.training.ranks import Ranks
from xpcnn.training.shared_step import SharedStep
from xpcnn.training.state import capture_state, restore_state
from xpcnn.training.step import Step

READ_EVERY = 50  # steps between two looks at what the device has done; a look waits for it
CHECK_EVERY = 200  # steps between two looks whether all ranks of a job still have the same parameters
FLUSH_EVERY = 64  # steps, for which at most a number that decays stays among the denormals


class Trainer:
    """Trains a model: forward, loss, backward, update, for every batch of every epoch.

    Parameters
    ----------
    model : Module
        What is trained.
    optimizer : Optimizer
        Over the model's parameters.
    criterion : loss object
        `loss = criterion(logits, labels)`, `dlogits = criterion.backward()`.
    schedule : Schedule or None
        Changes the rates.
    schedule_every : "batch" or "epoch", optional
        What the schedule counts: its `step()` is called after each batch (the default) or each epoch. Must be said
        with a schedule whose numbers mean either in practice, such as `StepLR`. `ReduceLROnPlateau` counts epochs.
    callbacks : sequence
        Objects with any of `on_fit_start`, `on_step`, `on_metrics`, `on_epoch`, `on_fit_end`, each called with the
        trainer (`training.Callback` says when).
    compile : "auto", True or False
        Whether steps are recorded once and replayed (`xpcnn.compile`): "auto" where that can be, True means that it is
        an error where it cannot. (`capture`, its name before 0.2, goes on working until 0.3.)
    checkpoint : Checkpointer or None
        Where and when the training is saved.
    nonfinite : "stop" or "skip"
        What happens at a loss or gradient that is nan or infinite: `NonFiniteError`, or the update is left out.
    clip_norm : float or None
        The highest common norm of the gradients.
    scaler : GradScaler or None
        Scales the loss for a float16 model (`model.half()`, which works without one too, but rounds small gradients to
        zero). A gradient that overflows is then no error: the update is left out and the scale lowered, unless it
        cannot be lowered any more or the loss itself is nan or infinite.
    accumulate : int
        Batches that make one step: their gradients are added up, each weighted by its share of the samples, so that a
        step is that of one batch of them all (but for batch norm, which sees each batch by itself, and for a mean
        that is weighted by classes). An epoch's last step takes what is left. A schedule counts steps.
    read_every : int
        Steps between two looks at what a device has done, each of which waits for it.
    communicator : Communicator or None
        Of `xpcnn.distributed.init()`: the ranks of the job train one model, each on its part of every batch that `fit`,
        `train_batch` and `evaluate` are given (the same on each rank, as one process would have it). Loss, metrics and
        history are those of whole batches, the same on all ranks; rank 0 alone writes checkpoints and calls callbacks
        that say `once = True`. Parameters, buffers and optimiser start as rank 0's.
    sync_batch_norm : bool
        With a communicator: batch norm takes the statistics of whole batches, as one process does, rather than each
        rank those of its part. Two small sums a layer and direction; such steps are not recorded.

    Attributes
    ----------
    step, epoch, batch : int
        Steps so far, whole epochs so far, batches so far in the present epoch.
    history : History
        Of all steps that have been read from the device.
    interrupted : bool
        Set it to end the training after the present step, as Ctrl-C does.
    stopped, stop_reason : bool, str
        Whether `stop` ended the last `fit`, and what it was told.
    resumed, completed : bool
        Whether the last `fit` went on from a checkpoint; and whether it ran to its end, or to that of `stop`.
    validates : bool
        Whether the last `fit` had validation data.
    skipped : int
        Updates left out because of nan or inf, those that overflowed included.

    Raises
    ------
    ConfigError
        An argument has a value that is not allowed.

    Examples
    --------
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss())
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=2)
    >>> len(history), trainer.step, trainer.evaluate(batches).count
    (2, 2, 8)
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        criterion: Any,
        *,
        schedule: Schedule | None = None,
        schedule_every: str | None = None,
        callbacks: Sequence[Callback | Any] = (),
        compile: str | bool = "auto",
        checkpoint: Checkpointer | None = None,
        nonfinite: str = "stop",
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: int = 1,
        read_every: int = READ_EVERY,
        communicator: Communicator | None = None,
        sync_batch_norm: bool = False,
        capture: str | bool | None = None,
    ) -> None:
        if capture is not None:
            warnings.warn("capture: goes with version 0.3; say compile= instead", DeprecationWarning, stacklevel=2)
            compile = capture
        check_parts(model, optimizer, criterion, schedule, checkpoint, scaler)
        check_options(compile, nonfinite, clip_norm, read_every, accumulate)
        self.schedule_every = what_it_counts(schedule, schedule_every)
        if communicator is not None and not isinstance(communicator, Communicator):
            raise ConfigError(
                f"communicator: expected what xpcnn.distributed.init() returns, got {type(communicator).__name__}"
            )
        self.model, self.optimizer, self.criterion, self.schedule = model, optimizer, criterion, schedule
        self.communicator, self.sync_batch_norm = communicator, bool(sync_batch_norm)
        self._ranks = None if communicator is None else Ranks(communicator)
        if not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks: expected a sequence of them, got {type(callbacks).__name__}")
        self.callbacks = list(callbacks)
        methods(self.callbacks)
        self.compile, self.checkpoint, self.nonfinite = compile, checkpoint, nonfinite
        self.clip_norm, self.scaler, self.read_every = clip_norm, scaler, read_every
        self.accumulate = accumulate
        self.step = self.epoch = self.batch = self.first_epoch = self.skipped = 0
        self.batches_per_epoch: int | None = None
        self.epochs = 0
        self.history = History()
        self.average = RunningAverage()
        self.hits = RunningAverage()
        self.seconds = 0.0
        self._pending: list[tuple[int, float, int]] = []  # samples, rate and batches of steps that are not read
        self._step: Step | None = None
        self._wanted: tuple[Any, ...] = ()
        self._on_step: list[Callable[[Any], None]] = []
        self._sums = getattr(criterion, "reduction", "mean") == "sum"
        self._resumed = self.resumed = self.completed = False
        self.interrupted = self.stopped = self.validates = False
        self.signum = int(signal.SIGINT)
        self.stop_reason = ""
        self._predicting = Predicting()

    def __repr__(self) -> str:
        parameters = sum(parameter.size for parameter in self.model.parameters())
        parts = [
            f"{type(self.model).__name__} of {parameters:,} parameters",
            repr(self.optimizer),
            repr(self.criterion),
        ]
        if self.schedule is not None:
            parts.append(f"schedule={self.schedule!r}, schedule_every={self.schedule_every!r}")
        return f"{type(self).__name__}({', '.join(parts)}, step={self.step}, epoch={self.epoch})"

    def __getstate__(self) -> dict[str, Any]:
        self.read()
        return vars(self) | {"_step": None, "_on_step": []}  # both are made anew where they are needed

    # --- training -------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Iterable[tuple[Array, Array]],
        validation: Iterable[tuple[Array, Array]] | None = None,
        epochs: int = 1,
        *,
        resume: bool = False,
    ) -> History:
        """Train for `epochs` passes over `train`.

        Parameters
        ----------
        train, validation : DataLoader, or any iterable of (x, labels) that can be iterated again
            Batches on the model's backend. `validation` is evaluated after each epoch.
        epochs : int
            How many passes. A resumed training counts those from before.
        resume : bool
            Go on from the newest checkpoint of `checkpoint`; begin where there is none.

        Returns
        -------
        History
            Of all steps and epochs, those before a resume included. After `stop` it ends with the step that was
            running; an epoch that was not finished has no row, and is written to `checkpoint`.

        Raises
        ------
        NonFiniteError
            The loss or a gradient became nan or infinite (with nonfinite="stop").
        KeyboardInterrupt
            Ctrl-C, SIGTERM or SIGHUP (`training.interrupt.Interruption`, with the signal's number): after the step that
            was running was finished and a checkpoint written.
        ConfigError, DataError, StateError
            A value is not allowed, the schedule ends before the training, `train` is empty, a checkpoint cannot be read
            or written or belongs to another model, or another process uses the folder.
        """
        check_count("epochs", epochs, 0)
        follows = self._ranks is not None and not self._ranks.is_first
        if resume and self.checkpoint is None and not follows:
            raise ConfigError("resume: expected a trainer with checkpoint=Checkpointer(folder), got none")
        check_batches("train", train)
        if validation is not None:
            check_batches("validation", validation)
        if self._ranks is not None and follows:
            if resume:
                self._resume(self._ranks.state_of_first(None), train)
            return self._fit(train, validation, epochs)
        if self.checkpoint is None:
            return self._fit(train, validation, epochs)
        self.checkpoint.open()
        try:
            if resume:
                state = self.checkpoint.latest()
                if self._ranks is not None:
                    state = self._ranks.state_of_first(state)
                self._resume(state, train)
            elif self.step == 0 and self.checkpoint.steps():
                raise ConfigError(
                    f"{self.checkpoint.folder}: expected a folder without checkpoints, got one with some; "
                    "go on from them with resume=True or choose another folder"
                )
            return self._fit(train, validation, epochs)
        finally:
            self.checkpoint.close()

    def _resume(self, state: State | None, train: Any) -> None:
        if state is not None:
            restore_state(self, state, train)
            self._resumed = True

    def _fit(self, train: Any, validation: Any, epochs: int) -> History:
        self.resumed, self._resumed, self.completed = self._resumed, False, False
        if not self.resumed:
            self.first_epoch, self.batch, self.seconds = self.epoch, 0, 0.0
            self.average.reset()
            self.hits.reset()
        self.epochs = self.first_epoch + epochs
        self.batches_per_epoch = len(train) if hasattr(train, "__len__") else None
        self.validates = validation is not None
        self._predicting.look_at(self.model, validation, train)
        check_it_lasts(self)
        backend = backend_of(next(iter(self.model.parameters())).data)
        if self._ranks is not None:
            self._ranks.begin(self, train, validation)
        self._renew(backend)
        on_start, self._on_step, on_metrics, on_epoch, on_end = methods(self._called())
        self.stopped, self.stop_reason = False, ""
        for call in on_start:
            call(self)
        try:
            with backend.errstate(), interruptible(self):
                while self.epoch < self.epochs and not self.stopped:
                    if not self._run_epoch(train):
                        break
                    with validation_weights(self) if validation is not None else contextlib.nullcontext():
                        metrics = self.evaluate(validation) if validation is not None else None
                        score = self._end_epoch(metrics)
                        for call in on_metrics:
                            call(self)
                    if self._writes is not None and self._writes.due_at_epoch(self.epoch):
                        self.save(train, score)
                    for call in on_epoch:
                        call(self)
                    if self._ranks is not None:
                        self._ranks.check(self)
                        self._ranks.agree(self)
                    if self.interrupted:
                        self._interrupt(train)
                self.completed = True
        finally:
            for call in on_end:
                call(self)
        return self.history

    def _called(self) -> list[Any]:
        """Return the callbacks of this rank."""
        is_first = self._ranks is None or self._ranks.is_first
        return [each for each in self.callbacks if is_first or not getattr(each, "once", False)]

    @property
    def _writes(self) -> Checkpointer | None:
        """What writes this rank's checkpoints."""
        return self.checkpoint if self._ranks is None or self._ranks.is_first else None

    def stop(self, reason: str = "") -> None:
        """End the training after the step, or the epoch, that is under way; `fit` then returns its history.

        For callbacks, and for other threads. Called in `on_step`, it ends the epoch there, and nothing is validated;
        called in `on_epoch`, no further one begins.

        Parameters
        ----------
        reason : str
            Kept as `stop_reason`, and shown by the command line.
        """
        self.stopped, self.stop_reason = True, str(reason)

    def _run_epoch(self, train: Any) -> bool:
        """Run the rest of an epoch; return False where `stop` left some of it."""
        schedule, on_step, checkpoint = self.schedule, self._on_step, self._writes
        if self.schedule_every != "batch":
            schedule = None
        if not self.model.training:
            self.model.train()
        started = time.perf_counter() - self.seconds
        whole = True
        for x, labels in self._steps(train):
            self._do(x, labels)
            if schedule is not None:
                schedule.step()
            for call in on_step:
                call(self)
            interrupted, stopped = self.interrupted, self.stopped
            if self._ranks is not None:
                if self.step % CHECK_EVERY == 0:
                    self._ranks.check(self)
                interrupted, stopped = self._ranks.agreed(self, self._renew())
            if checkpoint is not None and self.batch != self.batches_per_epoch and checkpoint.due(self.step):
                self.seconds = time.perf_counter() - started
                self.save(train)
            if interrupted:
                self.seconds = time.perf_counter() - started
                self._interrupt(train)
            if stopped and self.batch != self.batches_per_epoch:
                whole = False
                break
        self.read()
        self.seconds = time.perf_counter() - started
        if self.batch == 0:
            raise DataError("train: expected at least one batch, got none")
        if not whole and self._writes is not None:
            self.save(train)
        return whole

    def _renew(self, backend: Backend | None = None) -> Step:
        """Return the step that does what the trainer's attributes say now."""
        wanted = self.criterion, self.clip_norm, self.scaler, self.nonfinite, self.compile, self.sync_batch_norm
        if self._step is None or backend is not None or wanted != self._wanted:
            self.read()
            backend = backend or backend_of(next(iter(self.model.parameters())).data)
            self._wanted = wanted
            kind = Step if self._ranks is None else self._ranks.step(self.sync_batch_norm)
            self._step = kind(
                self.model, self.criterion, self.optimizer, backend, clip_norm=self.clip_norm, scaler=self.scaler,
                stops=self.nonfinite == "stop", compile=self.compile, read_every=self.read_every,
            )  # fmt: skip
        return self._step

    def _do(self, x: Any, labels: Any) -> None:
        step = self._renew()
        lr = self.optimizer.param_groups[0]["lr"]
        sizes = [each.shape[0] for each in x] if isinstance(x, tuple) else [x.shape[0]]
        parts: tuple[Part, ...] = ()
        if self._ranks is not None and isinstance(step, SharedStep):
            parts = self._ranks.take_parts()
            sizes = [part.total for part in parts]
            step.flags = self._ranks.flags(self)
        try:
            with computing(parts) if parts else contextlib.nullcontext():
                step.run(x, labels)
        except MemoryError as error:
            raise out_of_memory(step, self.step + 1, error, x, labels) from error
        except BaseException:  # such as a timeout of the user's own
            self._abandon(step)
            raise
        self.step += 1
        self.batch += len(sizes)
        self._pending.append((sum(sizes), lr, len(sizes)))
        if step.immediate or len(self._pending) >= self.read_every:
            self.read()
        if self.step % FLUSH_EVERY == 0:
            self.optimizer.flush_denormals()

    def train_batch(self, x: Array, labels: Array) -> None:
        """Do one step on one batch, recorded and replayed as `fit` does: for a loop of one's own.

        Sets training mode at the first call; the schedule and the callbacks are the loop's own business. The step's
        loss is in `history` when it returns, or after `read()` where a device must not be waited for.

        Parameters
        ----------
        x : array (N, C, H, W) or (N, D)
            On the model's backend.
        labels : array (N,) or (N, K)

        Raises
        ------
        NonFiniteError
            As for `fit`.
        DataError
            They are no arrays.
        """
        check_arrays(x, labels)
        if self._step is None:
            if not self.model.training:
                self.model.train()
            if self._ranks is not None:
                self._ranks.begin(self, None, None)
        if self._ranks is not None:
            x, labels = self._ranks.cut(self._renew(), x, labels)
        with self._renew().backend.errstate():
            unbroken(self._do, x, labels)

    def _steps(self, train: Any) -> Iterator[tuple[Any, Any]]:
        """Yield a batch after the other; where several make a step, tuples of theirs."""
        if self._ranks is not None:
            batches: Iterator[Any] = self._ranks.batches(train, self._renew(), self.batch)
        else:
            batches = iter(train)
            if self.batch and not hasattr(train, "load_state_dict"):
                batches = islice(batches, self.batch, None)  # one without a position: pass over what was done
        if self.accumulate == 1:
            yield from (unpack("train", batch) for batch in batches)
            return
        while True:
            # No more than there are: a loader that has given out its last is at its next epoch.
            left = self.accumulate if self.batches_per_epoch is None else self.batches_per_epoch - self.batch
            found = [unpack("train", batch) for batch in islice(batches, max(1, min(left, self.accumulate)))]
            if not found:
                return
            yield tuple(x for x, _ in found), tuple(labels for _, labels in found)

    def _end_epoch(self, metrics: Metrics | None) -> float:
        """Bring an epoch into the history; return its score, higher for a better model."""
        self.epoch += 1
        watches = getattr(self.schedule, "monitors", False)
        if self.schedule is not None and self.schedule_every == "epoch" and not watches:
            self.schedule.step()
        self.history.add_epoch(
            step=self.step,
            loss=self.average.value,
            accuracy=self.hits.value,
            validation_loss=metrics.loss if metrics else math.nan,
            validation_accuracy=metrics.accuracy if metrics else math.nan,
            seconds=self.seconds,
            images_per_second=self.average.weight / self.seconds if self.seconds else math.nan,
        )
        if self.schedule is not None and watches:
            step: Any = self.schedule.step
            wanted = getattr(self.schedule, "monitor", None), getattr(self.schedule, "mode", "min") == "max"
            step(latest(self, wanted[0], accuracy=wanted[1]))
        score = -self.average.value
        if metrics is not None:
            score = -metrics.loss if math.isnan(metrics.accuracy) else metrics.accuracy
        self.batch, self.seconds = 0, 0.0
        self.average.reset()
        self.hits.reset()
        return score

    def read(self) -> None:
        """Bring the numbers of the steps since the last call into the history. Waits for the device.

        Raises
        ------
        NonFiniteError
            One of the steps had a loss or gradient that is nan or infinite, and nonfinite is "stop".
        """
        if self._step is None:
            return
        rows = self._step.read()
        del rows[len(self._pending) :]  # of a step that was broken off
        first = self.step - len(rows) + 1
        for i, ((loss, hits, bad, fatal), (size, lr, _)) in enumerate(zip(rows, self._pending, strict=True)):
            if bad:
                if fatal and self.nonfinite == "stop":
                    self.step -= len(rows) - i  # nothing was updated from this step on
                    self.batch -= sum(count for *_, count in self._pending[i:])
                    self._pending.clear()
                    raise NonFiniteError(self._step.explanation(first + i, loss, lr))
                self.skipped += 1
            accuracy = hits / size if has_accuracy(self.criterion) else math.nan
            self.history.add_step(loss, accuracy, lr)
            if not bad:
                self.average.add(loss if self._sums else loss * size, size)
                if not math.isnan(accuracy):
                    self.hits.add(hits, size)
        self._pending.clear()

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, data: Iterable[tuple[Array, Array]], *, per_class: bool = False) -> Metrics:
        """Return loss and accuracy over all samples of `data`, each counted once, in eval mode and without gradients.

        Every layer's mode is afterwards what it was before. With `per_class`, the result's `per_class` tells precision,
        recall and F1 of each class.

        Raises
        ------
        ConfigError, DataError
            `data` is no iterable of batches, or has none.
        """
        return evaluate(self.model, self.criterion, data, self.read_every, self.communicator, per_class=per_class)

    def predict(self, images: Any, *, batch_size: int = BATCH) -> Array:
        """Return probabilities (N, K) on the model's backend, in eval mode; each layer's mode stays what it is.

        Parameters
        ----------
        images : array, or whatever a `Predictor` takes
            Images as the loaders of the last `fit` have them, which go through their transform (without what it draws
            at random), or what the model takes: floats, where the loaders have integers. Before a `fit` on loaders,
            integers are divided by 255.
        batch_size : int
            Images that go through the model together.
        """
        return self._predicting.probabilities(self.model, images, batch_size)

    # --- saving -----------------------------------------------------------------------------------------------------

    def save(self, train: Any = None, score: float | None = None) -> Path:
        """Write a checkpoint now; of several ranks, rank 0 alone does.

        Raises
        ------
        ConfigError
            The trainer has no `checkpoint`.
        DataError
            It cannot be written; earlier ones are untouched.
        """
        if self.checkpoint is None:
            raise ConfigError("checkpoint: expected a trainer with checkpoint=Checkpointer(folder), got none")
        self.read()
        if self._writes is None:
            return self.checkpoint.path(self.step)
        path = self.checkpoint.write(capture_state(self, train), score)
        trim()  # the state and its file, gone now, grow with the history and would be taken from ever higher memory
        return path

    # --- what may go wrong --------------------------------------------------------------------------------------------

    def _interrupt(self, train: Any) -> None:
        where = f"stopped after step {self.step} (epoch {self.epoch + 1}, batch {self.batch})"
        if self.checkpoint is None:
            self.read()  # steps that a device has done and not told
            if self._ranks is not None:
                self._ranks.communicator.part_together()
            raise Interruption(f"{where}; nothing was saved, for there is no checkpoint folder", self.signum)
        path = self.save(train)
        if self._ranks is not None:
            self._ranks.communicator.part_together()
        raise Interruption(
            f"{where}; checkpoint {path} is written, go on with --resume (fit(..., resume=True))", self.signum
        )

    def _abandon(self, step: Step) -> None:
        """Leave nothing of a step that was broken off: no caches, no gradients."""
        with contextlib.suppress(NonFiniteError):
            self.read()  # what whole steps have left, without the broken one's row
        step.model.forget()
        step.zero_grad()
