"""A copy of the code for a job that waits: later edits don't reach it.

What is copied is what git knows or would know: tracked files and untracked ones that are not
ignored, as they are on the disk. Where the genus package does not stand in the same repository, it
is copied as well, to ``platform/genus``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from genus.errors import ConfigError

LARGEST_MB = 100
"""A larger copy is refused: it would hold data or checkpoints that someone forgot to ignore."""
SECRETS = (".env", ".env.*", ".netrc", "*.pem", "*.key", "id_rsa*", "id_ed25519*")
"""Files of these names are left out: run folders are shown around."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a snapshot is taken of."""

    files: Mapping[str, Path]
    """Name in the snapshot -> file."""
    recipe: str
    """The recipe's name in the snapshot."""
    package: str
    """The folder in the snapshot that Python's path needs."""
    top: Path
    """The repository, or the recipe's folder where there is none."""


def source_of(recipe: Path) -> Source:
    """What a recipe needs to run. ConfigError where git refuses, or where it is too much."""
    import genus

    recipe, package = recipe.resolve(), Path(genus.__file__).resolve().parent
    top, names = _listed(recipe.parent)
    secret = [name for name in names if any(fnmatch(Path(name).name, s) for s in SECRETS)]
    files = {name: top / name for name in set(names) - set(secret) if (top / name).is_file()}
    files.setdefault(recipe.relative_to(top).as_posix(), recipe)
    own = [name for name, path in files.items() if path.resolve() == package / "__init__.py"]
    if own:
        root = Path(own[0]).parents[1].as_posix()
    else:  # installed, maybe in an ignored folder of the same repository
        root = "platform"
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"platform/genus/{path.relative_to(package).as_posix()}"] = path
    _refuse_large(files)
    return Source(files=files, recipe=recipe.relative_to(top).as_posix(), package=root, top=top)


def take_snapshot(source: Source, folder: Path) -> None:
    """Copy ``source`` to ``folder``/code, and tell of it in ``folder``/snapshot.json."""
    code = folder / "code"
    for name, path in source.files.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, code / name)
    about = {
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from": str(source.top),
        "git_commit": _git(source.top, "rev-parse", "HEAD").strip() or None,
        "git_dirty": bool(_git(source.top, "status", "--porcelain").strip()),
        "hash": hash_of(code, sorted(source.files)),
        "files": sorted(source.files),
    }
    (folder / "code.diff").write_text(_git(source.top, "diff", "HEAD"))
    (folder / "snapshot.json").write_text(json.dumps(about, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a snapshot was taken of."""

    commit: str | None
    dirty: bool
    diff: str
    """Of the files to that commit."""


def origin_of(script: Path) -> Origin | None:
    """Where the snapshot that holds ``script`` is from; None where it stands in no snapshot."""
    for folder in script.resolve().parents:
        about = folder.parent / "snapshot.json"
        if folder.name == "code" and about.is_file():
            told = json.loads(about.read_text())
            diff = (folder.parent / "code.diff").read_text()
            return Origin(commit=told["git_commit"], dirty=told["git_dirty"], diff=diff)
    return None


def hash_of(code: Path, names: list[str]) -> str:
    """SHA-256 of the named files below ``code``: their names and their bytes."""
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name} {hashlib.sha256((code / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _listed(folder: Path) -> tuple[Path, list[str]]:
    """The top of the repository around ``folder`` and its files' names; without git, ``folder`` and
    its Python files."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return folder, [path.name for path in folder.glob("*.py")]
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        top = _run(folder, "git", "rev-parse", "--show-toplevel").strip()
        names = _run(Path(top), *words).split("\0")
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        raise ConfigError(f"can't list the files of the repository {folder}: {why}") from None
    return Path(top), sorted({name for name in names if name})


def _run(folder: Path, *words: str) -> str:
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def _git(top: Path, *words: str) -> str:
    if not (top / ".git").exists():
        return ""
    done = subprocess.run(["git", *words], cwd=top, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def _refuse_large(files: Mapping[str, Path]) -> None:
    sizes = {name: os.path.getsize(path) for name, path in files.items()}  # noqa: PTH202
    total = sum(sizes.values()) / 1e6
    if total > LARGEST_MB:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        told = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        raise ConfigError(
            f"the code to copy for the job has {total:.0f} MB, more than {LARGEST_MB}: let git "
            f"ignore what is no code, above all {told}"
        )
