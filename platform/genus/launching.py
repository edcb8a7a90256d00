"""What a job starts on each node: Accelerate's config, and how many processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genus.errors import ConfigError

_DDP = """# DDP over the processes of the job; `genus submit` made it. Two processes or more are
# MULTI_GPU to Accelerate on CPUs as well: MULTI_CPU starts one only.
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: false
mixed_precision: "{precision}"
"""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How the processes of a node are started."""

    config: str | None
    """Text of Accelerate's config file; None: the one process is started without a launcher."""
    precision: str
    """mixed_precision, as Accelerate spells it."""


def launcher_for(
    processes: int,
    nodes: int,
    gpus: bool,
    precision: str,
    file: Path | None,
    snapshot: Mapping[str, Path],
) -> Launcher:
    """The launcher of a world of ``processes`` on ``nodes``, which hybrid sharding copies between.

    ``precision`` is the recipe's train.precision; ``snapshot`` holds the files that the job will
    have by name, among them DeepSpeed's JSON that ``file`` may name. ConfigError where the file
    can't serve.
    """
    if file is None:
        mixed = "bf16" if gpus and precision == "auto" else "no"
        # One process needs no launcher; Accelerate's own for one passes no signal on.
        text = _DDP.format(precision=mixed) if processes > 1 else None
        return Launcher(config=text, precision=mixed)
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"can't read --launch-config {file}: {error}") from None
    kind, mixed = _value(text, "distributed_type"), _value(text, "mixed_precision") or "no"
    if kind in ("", "NO") and processes == 1:
        return Launcher(config=None, precision=mixed)
    if kind in ("", "NO", "MULTI_CPU"):
        raise ConfigError(
            f"--launch-config {file} has distributed_type {kind or 'none'}, which starts one "
            f"process, but the job asks for {processes}: take another file, or none for DDP"
        )
    if kind == "MULTI_GPU" and processes == 1:
        return Launcher(config=None, precision=mixed)
    for what, size in (("replicate", nodes), ("shard", processes // nodes)):
        text = re.sub(rf"(dp_{what}_size\s*:\s*)\d+", rf"\g<1>{size}", text)
    return Launcher(config=_with_snapshot(text, file, snapshot), precision=mixed)


def _value(text: str, key: str) -> str:
    found = re.search(rf"^\s*{key}\s*:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def _with_snapshot(text: str, file: Path, snapshot: Mapping[str, Path]) -> str:
    """``text`` with DeepSpeed's JSON taken from the snapshot, and with torchrun as the launcher of
    several nodes: DeepSpeed's default wants ssh between them."""
    named = re.search(r"^(\s*deepspeed_config_file\s*:\s*)[\"']?([^\"'\n#]+)", text, re.MULTILINE)
    if named:
        path = Path(named.group(2).strip())
        # From where the user stands, as Accelerate looks for it, or from the repository's root.
        wanted = (Path.cwd() / path).resolve()
        wanted = wanted if wanted.is_file() else snapshot.get(path.as_posix(), wanted)
        if not wanted.is_file():
            raise ConfigError(f"{file} names {path}, which is not there")
        inside = [name for name, source in snapshot.items() if source.resolve() == wanted]
        place = f"@SUBMISSION@/code/{inside[0]}" if inside else str(wanted)
        text = text[: named.start()] + named.group(1) + place + text[named.end() :]
    launcher = re.search(r"^(\s*)deepspeed_multinode_launcher\s*:.*$", text, re.MULTILINE)
    if launcher:
        new = f"{launcher.group(1)}deepspeed_multinode_launcher: standard"
        return text[: launcher.start()] + new + text[launcher.end() :]
    return re.sub(
        r"^(deepspeed_config\s*:.*)$",
        r"\1\n  deepspeed_multinode_launcher: standard",
        text,
        flags=re.MULTILINE,
    )
