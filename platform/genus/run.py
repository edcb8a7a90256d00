"""A run: its folder, its provenance, its log and the signals that end it early but cleanly."""

from __future__ import annotations

import importlib.util
import json
import os
import platform as python_platform
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from genus import __version__, config
from genus.data.manifest import DataInfo
from genus.errors import ConfigError, GenusError
from genus.mirror import start_mirror
from genus.parallel import World
from genus.tracking import Journal

ENVIRONMENT_KEPT = ("ACCELERATE_", "SLURM_JOB", "OMP_", "CUDA_VISIBLE", "NCCL_", "WORLD_SIZE")


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
        if world.is_first:
            self._write_provenance(command, script, info)
        world.barrier()
        self.metrics = Journal(self.folder / "metrics" / f"rank-{world.rank}.jsonl")
        self.events = Journal(self.folder / "events.jsonl") if world.is_first else None
        torch.manual_seed(cfg.seed)
        random.seed(cfg.seed)
        self.event("resume" if self.resumes else "start", world=world.size, on=world.describe())
        self.say(f"{self.folder}: {world.describe()}, seed {cfg.seed}, genus {__version__}")
        if world.is_first:
            self._mirror = start_mirror(self.folder, command.config.tracking)

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
        for marker in ("done", "requeue"):
            if self.world.is_first:
                (self.folder / marker).unlink(missing_ok=True)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = signal.Signals(number).name  # the loop looks at it; nothing else is safe

    def finish(self, why: str, samples: int) -> None:
        """Record the end: marker ``done``, or ``requeue`` when a signal ended the run early."""
        marker = "done" if why in ("finished", "time is up") else "requeue"
        self.event("finish", why=why, samples=samples)
        if self.world.is_first:
            (self.folder / marker).write_text(f"{samples}\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.event("fault", error=f"{type(error).__name__}: {error}"[:2000])
        if self._bar is not None:
            self._bar.close()
        self.metrics.close()
        if self.events is not None:
            self.event("closed")
            self.events.close()
        if self._mirror is not None:
            try:  # the mirror sends what is left and ends by itself; a slow one is left behind
                self._mirror.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        if error is None:  # after an error other ranks may be gone, and leaving would wait for them
            self.world.close()

    # ---- provenance ------------------------------------------------------------------------------

    def _write_provenance(self, command: config.Command[Any], script: str, info: DataInfo) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        if self.resumes:
            old = config.load(type(command.config), path)
            for change in config.differences(old, command.config):
                if not change.startswith("run.root:"):
                    self.say(f"config changed since this run was started: {change}")
        write_atomically(path, config.dumps(command.config))
        write_atomically(
            self.folder / "environment.json", json.dumps(_environment(script), indent=1) + "\n"
        )
        write_atomically(self.folder / "data.json", json.dumps(info.to_json(), indent=1) + "\n")
        difference = _git("diff", "HEAD", folder=Path(script).parent)
        write_atomically(self.folder / "code.diff", difference or "")


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """End the process with one clear message for errors that are written for the user."""
    try:
        yield
    except ConfigError as error:  # the same on every rank: the first one says it
        config.fail(str(error))
    except GenusError as error:
        rank = os.environ.get("RANK")
        print(f"error: {error}" if rank is None else f"error on rank {rank}: {error}", flush=True)
        # Other ranks may wait for this one in a collective: leave at once, the launcher ends them.
        os._exit(1)


def folder_of(cfg: RunConfig, script: str, preset: str) -> Path:
    """The run folder that a command line means."""
    return Path(cfg.root) / (cfg.name or f"{Path(script).stem}-{preset}")


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def recipe_of(folder: Path) -> Path:
    """The recipe's file that a run folder was made by; ConfigError when it is no run folder."""
    try:
        return Path(json.loads((folder / "environment.json").read_text())["recipe"])
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"{folder} is no run folder: it has no sound environment.json") from None


def load_recipe(folder: Path) -> ModuleType:
    """The recipe that a run folder was made by, imported from where it stood.

    Raises ConfigError when ``folder`` is no run or its recipe is gone.
    """
    script = recipe_of(folder)
    spec = importlib.util.spec_from_file_location(f"genus_recipe_{script.stem}", script)
    if spec is None or spec.loader is None or not script.exists():
        raise ConfigError(f"{folder} was made by {script}, which is not there any more")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    if str(script.parent) not in sys.path:
        sys.path.append(str(script.parent))  # as it was when the recipe ran as a script
    spec.loader.exec_module(module)
    return module


def _environment(script: str) -> Mapping[str, Any]:
    here = Path(script).resolve().parent
    cuda = torch.cuda.is_available()
    return {
        "recipe": str(Path(script).resolve()),
        "command": shlex.join(sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "system": python_platform.platform(),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "devices": [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count() if cuda else 0)
        ],
        "git_commit": (_git("rev-parse", "HEAD", folder=here) or "").strip() or None,
        "git_dirty": bool((_git("status", "--porcelain", folder=here) or "").strip()),
        "variables": {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_KEPT)},
        "packages": {d.metadata["Name"]: d.version for d in metadata.distributions()},
    }


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def describe(
    build: Callable[[Any, DataInfo], tuple[dict[str, nn.Module], Any]],
    cfg: Any,
    info: DataInfo,
    world: World,
    flops_per_sample: float = 0.0,
) -> None:
    """Print a config and what follows from it, for --dry-run; trains nothing, writes nothing."""
    if not world.is_first:
        return
    print(config.dumps(cfg), end="")
    with torch.device("meta"):
        networks, _ = build(cfg, info)
    steps = -(-cfg.train.samples // cfg.train.batch)
    image = f"{info.channels}x{info.resolution}x{info.resolution}"
    print(f"world     {world.describe()}")
    print(f"data      {info.url}: {info.samples:,} samples, {image}, {info.classes} classes")
    print(f"length    {steps:,} steps, {cfg.train.samples / info.samples:.2f} epochs")
    for name, network in networks.items():
        print(f"network   {name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    if flops_per_sample:
        print(f"compute   {flops_per_sample / 1e9:.3f} GFLOPs a sample, forward and backward")
