"""A run: its folder, its provenance, its log and the signals that end it early but cleanly."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from genus import __version__, config
from genus.data.manifest import DataInfo
from genus.data.opening import read_info
from genus.errors import AgreedDataError, ConfigError, DataError, GenusError, TrainingError
from genus.mirror import start_mirror
from genus.ownership import NotOwnerError, OwnedJournal, Owner, take
from genus.parallel import World
from genus.provenance import recipe_of, record
from genus.tracking import Journal

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives, and its seed."""

    root: str = "runs"
    """Folder that holds the run folders."""
    name: str = ""
    """The run's folder is root/name; empty: recipe-preset. The same name again resumes."""
    seed: int = 0
    """Seed of initialisation, data order and every random number of training."""


class Run:
    """The run folder, opened by all ranks; a context manager that records how the run ended."""

    def __init__(
        self, command: config.Command[Any], script: str, world: World, info: DataInfo
    ) -> None:
        """Make or reopen ``root/name``, as ``command.config.run``, a RunConfig, says.

        ``script`` is the recipe's file. Raises ConfigError where the folder is another recipe's.
        """
        cfg = command.config.run
        self.world = world
        self.seed: int = cfg.seed
        self.folder = folder_of(cfg, script, command.preset)
        self.resumes = (self.folder / "config.json").exists()
        if self.resumes and recipe_of(self.folder).name != Path(script).name:
            made_by = recipe_of(self.folder)
            raise ConfigError(f"{self.folder} is a run of {made_by}: take another run.name")
        world.barrier()  # nobody writes before all have looked
        self.stop_signal: str | None = None
        self._bar: tqdm[Any] | None = None
        self._mirror: subprocess.Popen[bytes] | None = None
        self._provenance = command, script, info
        self.owner = Owner(self.folder, _token(self.folder, world))
        if world.is_first and not self.resumes:
            record(self.folder, *self._provenance)
        world.barrier()
        path = self.folder / "metrics" / f"rank-{world.rank}.jsonl"
        self.metrics: Journal = OwnedJournal(path, self.owner)
        self._bad_samples: Journal | None = None
        self.events: Journal | None = None
        if world.is_first:
            self.events = OwnedJournal(self.folder / "events.jsonl", self.owner)
        torch.manual_seed(cfg.seed)
        random.seed(cfg.seed)
        self.event("resume" if self.resumes else "start", world=world.size, on=world.describe())
        self.say(f"{self.folder}: {world.describe()}, seed {cfg.seed}, genus {__version__}")
        if world.is_first:
            self._mirror = start_mirror(self.folder, command.config.tracking)

    def resumed(self, samples: int) -> None:
        """The state is loaded, so that this command may take the folder over: record it.

        Before that nothing in the folder is changed: a command that does not fit must not spoil
        the run that it failed to resume.
        """
        self.owner.check()
        if self.world.is_first and self.resumes:
            for change in record(self.folder, *self._provenance):
                self.say(f"config changed since this run was started: {change}")
            for marker in ("done", "requeue"):
                (self.folder / marker).unlink(missing_ok=True)
        if self.resumes:
            self.metrics.write({"resumed_at": samples})

    # ---- telling ---------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """A line of the log, from the first rank, beside the progress bar where there is one."""
        if self.world.is_first:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def event(self, what: str, **details: Any) -> None:
        """Append to events.jsonl."""
        if self.events is not None:
            self.events.write({"event": what, **details})

    def bad_sample(self, entry: Mapping[str, Any]) -> None:
        """Append to the ledger of bad samples, which exists once there are any."""
        if self._bad_samples is None:
            path = self.folder / "bad-samples" / f"rank-{self.world.rank}.jsonl"
            try:
                self._bad_samples = OwnedJournal(path, self.owner)
            except OSError as error:  # as with other journals: no reason to end the run
                print(f"can't write to {path}: {error}", file=sys.stderr, flush=True)
                return
        self._bad_samples.write(entry)

    def progress(self, samples: int, total: int, text: str) -> None:
        """A bar with time left in a terminal, a plain line elsewhere."""
        if not self.world.is_first:
            return
        if not sys.stderr.isatty():
            self.say(f"{samples:>10,}/{total:,}  {text}")
            return
        if self._bar is None:
            self._bar = tqdm(total=total, initial=samples, unit=" samples", unit_scale=True)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(samples - self._bar.n)

    # ---- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        _end_with_the_launcher()
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = signal.Signals(number).name  # the loop looks at it; nothing else is safe

    def finish(self, why: str, samples: int) -> None:
        """Record the end: marker ``done``, or ``requeue`` when the run ended early but cleanly.

        The marker holds the progress in samples and the owner's token.
        """
        self.owner.check()
        marker = "done" if why == "finished" else "requeue"
        self.event("finish", why=why, samples=samples)
        if self.world.is_first:
            (self.folder / marker).write_text(f"{samples}\n{self.owner.token}\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(NotOwnerError):  # then not a line is added
            if error is not None:
                self.event("fault", error=f"{type(error).__name__}: {error}"[:2000])
        if self._bar is not None:
            self._bar.close()
        self.metrics.close()
        if self._bad_samples is not None:
            self._bad_samples.close()
        if self.events is not None:
            with suppress(NotOwnerError):
                self.event("closed")
            self.events.close()
        if self._mirror is not None:
            try:  # the mirror sends what is left and ends by itself; a slow one is left behind
                self._mirror.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        if error is None:  # after an error other ranks may be gone, and leaving would wait for them
            self.world.close()


def _token(folder: Path, world: World) -> str:
    """Take the folder over for all ranks; returns the token. ConfigError where another is at work.

    Until the state is loaded the mark is all that changes in the folder.
    """
    taken: str | ConfigError = ""
    if world.is_first:
        try:
            taken = take(folder)
        except ConfigError as error:
            taken = error
    taken = world.broadcast(taken)
    if isinstance(taken, ConfigError):
        raise taken
    return taken


def _end_with_the_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies, so that no rank trains on as an orphan.

    `accelerate launch` of one process passes no signal on, and a killed launcher leaves its ranks
    running beside the run that replaces them. Linux only; harmless elsewhere.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        except (OSError, AttributeError):
            return


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """End the process with one clear message for errors that are written for the user.

    Exit code 2 for a wrong config or wrong data, 1 for what went wrong later.
    """
    try:
        yield
    except ConfigError as error:  # the same on every rank: the first one says it
        _tell_the_job(error)
        config.fail(str(error))
    except GenusError as error:
        _tell_the_job(error)
        rank = os.environ.get("RANK")
        if isinstance(error, AgreedDataError):
            if rank in (None, "0"):
                print(f"error: {error}", flush=True)
        else:
            where = "" if rank is None else f" on rank {rank}"
            print(f"error{where}: {error}", flush=True)
        # Other ranks may wait for this one in a collective: leave at once, the launcher ends them.
        os._exit(2 if isinstance(error, DataError) else 1)


def _tell_the_job(error: GenusError) -> None:
    """Leave a word for the batch job (launch/slurm/job.sbatch): starting again would not help."""
    path = os.environ.get("GENUS_FAILURE")
    lasting = isinstance(error, ConfigError | AgreedDataError | TrainingError | NotOwnerError)
    if path and lasting:
        with suppress(OSError), Path(path).open("a") as file:
            file.write(f"{error}\n")


def folder_of(cfg: RunConfig, script: str, preset: str) -> Path:
    """The run folder that a command line means."""
    return Path(cfg.root) / (cfg.name or f"{Path(script).stem}-{preset}")


def describe(
    build: Callable[[Any, DataInfo], tuple[dict[str, nn.Module], Any]],
    cfg: Any,
    world: World,
    flops: Callable[[Any, DataInfo], float] | None = None,
) -> None:
    """Print a config and what follows from it, for --dry-run; trains, fetches and writes nothing.

    ``flops`` (config, info) gives the model FLOPs of training on one sample.
    """
    if not world.is_first:
        return
    print(config.dumps(cfg), end="")
    print(f"world     {world.describe()}")
    print(f"length    {-(-cfg.train.samples // cfg.train.batch):,} steps of {cfg.train.batch}")
    try:
        info = read_info(cfg.data, fetch=False)
    except DataError as error:
        print(f"data      the sizes follow from the data, which can't be read: {error}")
        return
    print(f"data      {info.url}: {info.samples:,} samples of {info.sample}")
    print(f"epochs    {cfg.train.samples / info.samples:.2f}")
    with torch.device("meta"):
        networks, _ = build(cfg, info)
    for name, network in networks.items():
        print(f"network   {name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    if flops is not None:
        print(f"compute   {flops(cfg, info) / 1e9:.3f} GFLOPs a sample, forward and backward")
