"""A run: its folder, its provenance, its log and the signals that end it early but cleanly."""

from __future__ import annotations

import ctypes
import dataclasses
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
from genus.data.stream import read_info
from genus.errors import ConfigError, DataError, GenusError
from genus.mirror import start_mirror
from genus.parallel import World
from genus.tracking import Journal

PR_SET_PDEATHSIG = 1
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
        self._provenance = command, script, info
        if world.is_first and not self.resumes:
            self._write_provenance()
        world.barrier()
        self.metrics = Journal(self.folder / "metrics" / f"rank-{world.rank}.jsonl")
        self.events = Journal(self.folder / "events.jsonl") if world.is_first else None
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
        if self.world.is_first and self.resumes:
            self._write_provenance()
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
        for marker in ("done", "requeue"):
            if self.world.is_first:
                (self.folder / marker).unlink(missing_ok=True)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = signal.Signals(number).name  # the loop looks at it; nothing else is safe

    def finish(self, why: str, samples: int) -> None:
        """Record the end: marker ``done``, or ``requeue`` when the run ended early but cleanly."""
        marker = "done" if why == "finished" else "requeue"
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

    def _write_provenance(self) -> None:
        command, script, info = self._provenance
        self.folder.mkdir(parents=True, exist_ok=True)
        named = dataclasses.replace(command.config.run, name=self.folder.name)
        cfg = dataclasses.replace(command.config, run=named)  # --config finds this folder again
        path = self.folder / "config.json"
        if self.resumes:
            old = config.load(type(cfg), path)
            for change in config.differences(old, cfg):
                if not change.startswith("run.root:"):
                    self.say(f"config changed since this run was started: {change}")
            number = len(list(self.folder.glob("environment*.json")))
            (self.folder / "environment.json").rename(self.folder / f"environment-{number}.json")
        environment = json.dumps(_environment(script), indent=1) + "\n"
        write_atomically(self.folder / "environment.json", environment)
        difference = _git("diff", "HEAD", folder=Path(script).parent)
        write_atomically(self.folder / "code.diff", difference or "")
        write_atomically(self.folder / "recipe.py", Path(script).read_text())
        data = json.dumps(info.to_json(), indent=1) + "\n"
        write_atomically(self.folder / "data.json", data)
        write_atomically(path, config.dumps(cfg))  # last: with it the folder is a run


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
        config.fail(str(error))
    except GenusError as error:
        rank = os.environ.get("RANK")
        print(f"error: {error}" if rank is None else f"error on rank {rank}: {error}", flush=True)
        # Other ranks may wait for this one in a collective: leave at once, the launcher ends them.
        os._exit(2 if isinstance(error, DataError) else 1)


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
        "launcher": _launcher(),
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
        "git_untracked": (_git("ls-files", "-o", "--exclude-standard", folder=here) or "").split(),
        "variables": {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_KEPT)},
        "packages": {d.metadata["Name"]: d.version for d in metadata.distributions()},
    }


def _launcher() -> str | None:
    """The parent's command line, where that is accelerate, torchrun or the like."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return None
    return shlex.join(words) if any("accelerate" in w or "torch" in w for w in words) else None


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
    image = f"{info.channels}x{info.resolution}x{info.resolution}"
    print(f"data      {info.url}: {info.samples:,} samples, {image}, {info.classes} classes")
    print(f"epochs    {cfg.train.samples / info.samples:.2f}")
    with torch.device("meta"):
        networks, _ = build(cfg, info)
    for name, network in networks.items():
        print(f"network   {name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    if flops is not None:
        print(f"compute   {flops(cfg, info) / 1e9:.3f} GFLOPs a sample, forward and backward")
