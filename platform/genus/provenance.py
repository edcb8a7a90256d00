"""Where a run came from: its config, code, machine and data, written down in its folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform as python_platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from genus import config
from genus.atomic import replacing
from genus.data.manifest import DataInfo
from genus.errors import ConfigError
from genus.recipe_command import import_script
from genus.snapshot import Origin, origin_of

ENVIRONMENT_KEPT = ("ACCELERATE_", "SLURM_JOB", "OMP_", "CUDA_VISIBLE", "NCCL_", "WORLD_SIZE")


def record(folder: Path, command: config.Command[Any], script: str, info: DataInfo) -> list[str]:
    """Write config.json, environment.json, data.json, code.diff and recipe.py of a run.

    In a folder that is a run already, earlier environments are kept under numbers; returns the
    lines in which the config differs from the one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = dataclasses.replace(command.config.run, name=folder.name)
    cfg = dataclasses.replace(command.config, run=named)  # --config finds this folder again
    path = folder / "config.json"
    changes: list[str] = []
    if path.exists():
        changes = config.differences(config.load(type(cfg), path), cfg)
        number = len(list(folder.glob("environment*.json")))
        (folder / "environment.json").rename(folder / f"environment-{number}.json")
    write_atomically(folder / "environment.json", json.dumps(_environment(script), indent=1) + "\n")
    origin = origin_of(Path(script))  # a job's copy of the code is no repository
    difference = (
        origin.diff if origin else _git("diff", "HEAD", folder=Path(script).resolve().parent)
    )
    write_atomically(folder / "code.diff", difference or "")
    write_atomically(folder / "recipe.py", Path(script).read_text())
    write_atomically(folder / "data.json", json.dumps(info.to_json(), indent=1) + "\n")
    write_atomically(path, config.dumps(cfg))  # last: with it the folder is a run
    return [change for change in changes if not change.startswith("run.root:")]


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


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
    module = import_script(script)
    if module is None:
        raise ConfigError(f"{folder} was made by {script}, which is not there any more")
    return module


def _environment(script: str) -> Mapping[str, Any]:
    here = Path(script).resolve().parent
    cuda = torch.cuda.is_available()
    origin = origin_of(Path(script)) or Origin(
        commit=(_git("rev-parse", "HEAD", folder=here) or "").strip() or None,
        dirty=bool((_git("status", "--porcelain", folder=here) or "").strip()),
        diff="",
    )
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
        "git_commit": origin.commit,
        "git_dirty": origin.dirty,
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
