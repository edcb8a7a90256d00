"""The batch script of a job: a site's template, filled in."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from genus.errors import ConfigError


class _BatchTemplate(Template):
    delimiter = "@@"  # $ is bash's own


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a batch script says."""

    name: str
    run: Path
    """The run folder; of a sweep, the folder with a link to each run, named by its number."""
    number: int
    """Of the submission in the run folder: slurm/NUMBER."""
    recipe: str
    package: str
    """In the snapshot: the recipe, and the folder that Python's path needs."""
    nodes: int = 1
    gpus_per_node: str = ""
    """As sbatch takes it: 8 or a100:8; empty: none."""
    processes: int = 1
    """On each node."""
    time: str = ""
    grace: int = 120
    """Seconds between the signal and the end."""
    restarts: int = 3
    """Without a newer checkpoint; then the job is given up."""
    sweep: int = 0
    """Runs of a sweep; 0: no sweep."""
    flags: Sequence[str] = ()
    """Flags of sbatch that are passed on."""
    dependency: str = ""
    container: str = ""
    mounts: Sequence[str] = ()
    precision: str = "no"
    """mixed_precision, as Accelerate spells it, where one process is started without it."""
    with_accelerate: bool = True
    variables: dict[str, str] = field(default_factory=dict)


def render(template: Path, job: Job) -> str:
    """The script. ConfigError names a placeholder that is unknown."""
    try:
        text = template.read_text()
    except OSError as error:
        raise ConfigError(f"can't read the template {template}: {error}") from None
    run = shlex.quote(str(job.run))
    if job.sweep:
        run = f'$(readlink -f {run}/"$SLURM_ARRAY_TASK_ID")'
    values = {
        "name": job.name,
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(job)),
        "run": run,
        "number": str(job.number),
        "package": shlex.quote(job.package),
        "processes": str(job.processes),
        "grace": str(job.grace),
        "starts": str(job.restarts + 1),
        "variables": "\n".join(
            f"export {key}={shlex.quote(value)}" for key, value in _variables(job).items()
        ),
        "container": " ".join(_container(job)),
        "python": _python(job),
        "launch": _launch(job),
    }
    try:
        return _BatchTemplate(text).substitute(values)
    except KeyError as error:
        raise ConfigError(
            f"{template}: there is no @@{{{error.args[0]}}}: {', '.join(values)}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{template}: {error} (a placeholder looks like @@{{run}})") from None


def directives(job: Job) -> list[str]:
    """The flags of sbatch, one a line."""
    folder = job.run / "%a" / "slurm" if job.sweep else job.run / "slurm"
    dependency = [] if job.sweep else ["singleton"]  # which would run an array one by one
    dependency += [job.dependency] if job.dependency else []
    lines = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    lines += [f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []
    lines += [f"--time={job.time}"] if job.time else []
    lines += [f"--signal=TERM@{job.grace}", "--requeue", "--open-mode=append"]
    lines += [f"--output={_quoted(str(folder))}/job-{'%A_%a' if job.sweep else '%j'}.out"]
    lines += [f"--dependency={','.join(dependency)}"] if dependency else []
    lines += [f"--array=0-{job.sweep - 1}"] if job.sweep else []
    return lines + _passed_on(job.flags)


def _passed_on(flags: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for word in flags:
        if word.startswith("-") and not re.fullmatch(r"-\d+", word):
            flag, equals, value = word.partition("=")
            lines.append(f"{flag}{equals}{_quoted(value)}")
        elif lines and " " not in lines[-1] and "=" not in lines[-1]:
            lines[-1] += f" {_quoted(word)}"
        else:
            raise ConfigError(f"'{word}' belongs to no flag; the recipe's own words come after --")
    return lines


def _quoted(value: str) -> str:
    if '"' in value or "\n" in value:
        raise ConfigError(
            f"a flag of sbatch can't hold a quotation mark or a line's end: {value!r}"
        )
    return f'"{value}"' if re.search(r"[\s#'\\]", value) else value


def _variables(job: Job) -> dict[str, str]:
    hidden = {} if job.gpus_per_node else {"CUDA_VISIBLE_DEVICES": ""}
    own = {} if job.with_accelerate else {"ACCELERATE_MIXED_PRECISION": job.precision}
    return {**hidden, **own, "RECIPE": job.recipe, **job.variables}


def _container(job: Job) -> list[str]:
    if not job.container:
        return []
    mounts = ",".join(dict.fromkeys(job.mounts))
    words = [f"--container-image={job.container}", f"--container-mounts={mounts}"]
    return [shlex.quote(word) for word in [*words, "--container-workdir=" + str(Path.cwd())]]


def _python(job: Job) -> str:
    return "python" if job.container else shlex.quote(sys.executable)


def _launch(job: Job) -> str:
    """The launcher's words inside of bash -c '...' on each node, where $SLURM_NODEID is its own."""
    python = "python" if job.container else f'"{sys.executable}"'
    recipe = '"$SUBMISSION/code/$RECIPE" --config "$SUBMISSION/config.json"'
    if not job.with_accelerate:
        return f"{python} {recipe}"
    lines = [
        f'{python} -m accelerate.commands.launch --config_file "$SUBMISSION/accelerate.yaml"',
        '--num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * PROCESSES))"',
        '--machine_rank "$SLURM_NODEID"',
        '--main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"',
        '--log_dir "$LOGS/node-$SLURM_NODEID" --tee 3',
        recipe,
    ]
    return " \\\n        ".join(lines)
