"""``genus submit``: a recipe as a SLURM job, with the code and the config of this moment."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genus import config, slurm
from genus.errors import ConfigError
from genus.launching import Launcher, launcher_for
from genus.provenance import recipe_of
from genus.recipe_command import command_of, import_recipe
from genus.slurm_script import Job, render
from genus.snapshot import Source, source_of, take_snapshot
from genus.sweep import members

_OURS = {
    "--job-name": "run.name=...", "-J": "run.name=...", "--array": "--sweep", "-a": "--sweep",
    "--signal": "--grace", "--output": "nothing: logs lie in the run folder's slurm/",
    "-o": "nothing: logs lie in the run folder's slurm/", "--error": "nothing: see --output",
    "-e": "nothing: see --output", "--ntasks": "--processes-per-node",
    "-n": "--processes-per-node", "--ntasks-per-node": "--processes-per-node",
    "--gres": "--gpus-per-node", "--gpus": "--gpus-per-node", "-G": "--gpus-per-node",
    "--gpus-per-task": "--gpus-per-node", "--open-mode": "nothing", "--no-requeue": "--restarts 0",
    "--chdir": "another folder to submit from", "-D": "another folder to submit from",
    "--wrap": "a recipe", "--container-mounts": "--mount", "--test-only": "--dry-run",
}  # fmt: skip


@dataclass(frozen=True)
class _Run:
    folder: Path
    config: Any

    def next_number(self) -> int:
        taken = (self.folder / "slurm").glob("[0-9]*")
        return max((int(path.name) for path in taken if path.name.isdigit()), default=0) + 1


def submit(arguments: argparse.Namespace, passed_on: Sequence[str], words: Sequence[str]) -> None:
    """``passed_on`` are flags of sbatch, ``words`` the recipe's own. ConfigError before anything
    is written or queued."""
    _refuse_ours(passed_on)
    limit = _seconds(arguments.time)
    if limit and 2 * arguments.grace > limit:
        raise ConfigError(
            f"--grace {arguments.grace}: the signal to save would come in the first half of a job "
            f"of {limit:.0f} s; take a shorter --grace or a longer --time"
        )
    recipe: Path = arguments.recipe
    runs = _runs_of(recipe, words, arguments.sweep)
    gpus = _count(arguments.gpus_per_node)
    processes = arguments.processes_per_node or gpus or 1
    world = arguments.nodes * processes
    source = source_of(recipe)
    precision = runs[0].config.train.precision
    launcher = launcher_for(
        world, arguments.nodes, gpus > 0, precision, arguments.launch_config, source.files
    )
    for run in runs:
        _refuse_unfit(run, recipe, world)
    number = max(run.next_number() for run in runs)
    sweep = runs[0].folder.with_name(f"{_base(runs, arguments)}.sweep") if arguments.sweep else None
    job = Job(
        name=_job_name(sweep or runs[0].folder),
        run=sweep or runs[0].folder,
        number=number,
        recipe=source.recipe,
        package=source.package,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        processes=processes,
        time=arguments.time,
        grace=arguments.grace,
        restarts=arguments.restarts,
        sweep=len(runs) if sweep else 0,
        flags=passed_on,
        dependency=arguments.dependency,
        container=arguments.container,
        mounts=[f"{path}:{path}" for path in (runs[0].folder.parent, Path.cwd())] + arguments.mount,
        precision=launcher.precision,
        with_accelerate=launcher.config is not None,
    )
    script = render(_template(arguments.template, source), job)
    if arguments.dry_run:
        print(script, end="")
        return
    _refuse_in_queue(runs, sweep is not None)
    slurm.refuse_impossible(script)
    for run in runs:
        _prepare(run, number, script, source, launcher)
    if sweep is not None:
        _link(sweep, runs)
    try:
        identity = slurm.submit(runs[0].folder / "slurm" / str(number) / "job.sbatch")
    except ConfigError:
        for run in runs:
            shutil.rmtree(run.folder / "slurm" / str(number))
        raise
    for task, run in enumerate(runs):
        about = {"job": identity, "task": task if sweep else None, "command": shlex.join(sys.argv),
                 "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z")}  # fmt: skip
        path = run.folder / "slurm" / str(number) / "submitted.json"
        path.write_text(json.dumps(about, indent=1) + "\n")
    for run in runs:
        print(f"{run.folder}")
    print(f"job {identity}: {arguments.nodes} nodes x {processes} processes; genus runs tells more")


def _runs_of(recipe: Path, words: Sequence[str], sweeps: Sequence[str]) -> list[_Run]:
    """The runs that the words mean, each with the config that the recipe's own parser makes."""
    module, found = import_recipe(recipe), []
    for member in members(sweeps):
        command = command_of(module, [*words, *member.overrides])
        if command.dry_run:
            raise ConfigError("--dry-run belongs before the --: genus submit RECIPE --dry-run")
        cfg = command.config
        name = (cfg.run.name or f"{recipe.stem}-{command.preset}") + member.suffix
        root = Path(cfg.run.root).absolute()
        placed = dataclasses.replace(cfg.run, name=name, root=str(root))
        found.append(_Run(root / name, dataclasses.replace(cfg, run=placed)))
    return found


def _job_name(folder: Path) -> str:
    """Singleton goes by the name: runs of the same name in other folders must not wait."""
    return f"genus-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def _base(runs: Sequence[_Run], arguments: argparse.Namespace) -> str:
    """The name that the runs of a sweep have in common."""
    return runs[0].folder.name.removesuffix(members(arguments.sweep)[0].suffix)


def _refuse_ours(flags: Sequence[str]) -> None:
    for word in flags:
        name = word.partition("=")[0]
        if name in _OURS:
            raise ConfigError(f"{name} is genus submit's own affair: use {_OURS[name]}")


def _seconds(limit: str) -> float:
    """A time limit as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0 for none."""
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not limit or not all(part.isdigit() for part in [*parts, *([days] if dash else [])]):
        return 0.0  # UNLIMITED and the like, or wrong: sbatch tells
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return int(days) * 86400.0 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60.0
    return float(sum(n * 60**i for i, n in enumerate(reversed(numbers))))


def _count(gpus: str) -> int:
    text = gpus.rpartition(":")[2]
    if gpus and not text.isdigit():
        raise ConfigError(f"--gpus-per-node {gpus}: write a number, or TYPE:NUMBER")
    return int(text or 0)


def _refuse_unfit(run: _Run, recipe: Path, world: int) -> None:
    """What the job would find out only after it has waited."""
    from genus.data.order import lanes_for, own_lanes

    if (run.folder / "config.json").exists() and recipe_of(run.folder).name != recipe.name:
        made_by = recipe_of(run.folder)
        raise ConfigError(f"{run.folder} is a run of {made_by}: take another run.name")
    own_lanes(lanes_for(run.config.train.batch, run.config.data.lanes), 0, world)


def _refuse_in_queue(runs: Sequence[_Run], sweep: bool) -> None:
    """Of a sweep a run must not be in the queue twice; a single run waits (singleton)."""
    from genus.commands_runs import queue_entry

    queued = slurm.queue()
    for run in runs:
        entry = queue_entry(run.folder, queued)
        if entry is None or entry.state.partition("+")[0] not in ("PENDING", "RUNNING"):
            continue
        if sweep:
            raise ConfigError(f"{run.folder} is in the queue already: {entry.describe()}")
        print(f"{run.folder} is in the queue already, {entry.describe()}: this job waits for it")


def _template(given: Path | None, source: Source) -> Path:
    if given is not None:
        return given
    import genus

    name = Path("launch") / "slurm" / "job.sbatch"
    for top in (source.top, Path(genus.__file__).parents[2]):
        if (top / name).is_file():
            return top / name
    raise ConfigError(f"there is no {name} here: give a template with --template")


def _prepare(run: _Run, number: int, script: str, source: Source, launcher: Launcher) -> None:
    """Leave in the run folder all that the job needs."""
    folder = run.folder / "slurm" / str(number)
    folder.mkdir(parents=True)
    take_snapshot(source, folder)
    (folder / "config.json").write_text(config.dumps(run.config))
    (folder / "job.sbatch").write_text(script)
    if launcher.config is not None:
        text = launcher.config.replace("@SUBMISSION@", str(folder))
        (folder / "accelerate.yaml").write_text(text)


def _link(sweep: Path, runs: Sequence[_Run]) -> None:
    """Number the runs of a sweep by links, as the tasks of the array are."""
    if sweep.exists():
        for old in sweep.iterdir():
            old.unlink()
    sweep.mkdir(exist_ok=True)
    for task, run in enumerate(runs):
        (sweep / str(task)).symlink_to(Path(os.pardir) / run.folder.name)
