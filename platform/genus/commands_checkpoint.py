"""``genus checkpoint``: whether checkpoints are whole, what they hold, and other formats."""

from __future__ import annotations

import argparse
from pathlib import Path

from genus import checkpoint_reader
from genus.checkpoint_reader import fault_of, newest, published, read_meta, tensor_shapes
from genus.errors import CheckpointError, ConfigError


def verify(path: Path) -> int:
    """A line for each checkpoint of a run, or for one: whole, or what is wrong with it. Returns the
    exit code: 1 where one is damaged."""
    paths = [path] if _is_checkpoint(path) else published(path / "checkpoints")
    aside = [] if _is_checkpoint(path) else sorted((path / "checkpoints").glob("damaged-*"))
    if not paths and not aside:
        raise CheckpointError(f"{path} is no checkpoint and has none in {path / 'checkpoints'}")
    faults = 0
    for each in paths:
        fault = fault_of(each)
        faults += fault is not None
        size = sum(file.stat().st_size for file in each.iterdir() if file.is_file())
        told = f"{read_meta(each)['samples']:>15,} samples" if fault is None else fault
        print(f"{'DAMAGED' if fault else 'whole':<8} {each.name}  {size / 1e6:>10,.1f} MB  {told}")
    for each in aside:
        print(f"damaged, set aside by an earlier resume: {each}")
    print(f"{len(paths) - faults} of {len(paths)} whole")
    return 1 if faults else 0


def digest(path: Path) -> None:
    """SHA-256 of every state in a checkpoint (the newest of a run), and of all."""
    path = the_checkpoint(path)
    print(path)
    for name, value in checkpoint_reader.digest(path).items():
        print(f"{value}  {name}")


def convert(arguments: argparse.Namespace) -> None:
    """To a .safetensors file, or from DeepSpeed's format to a new run."""
    from genus.deepspeed_files import is_deepspeed

    exports = arguments.target.suffix == ".safetensors"
    foreign = ("out", "network", "prefix") if exports else ("average", "weights")
    given = [f"--{word}" for word in foreign if getattr(arguments, word)]
    if given:
        direction = "to" if exports else "from DeepSpeed's format, not to"
        raise ConfigError(f"{', '.join(given)}: not with a conversion {direction} .safetensors")
    if exports:
        _export(arguments.source, arguments.target, arguments.average, arguments.weights)
    elif not is_deepspeed(arguments.source):
        raise ConfigError(
            f"{arguments.source} is no folder that DeepSpeed's save_checkpoint wrote, and "
            f"{arguments.target} is no .safetensors file: from the one, or to the other"
        )
    elif arguments.out is None:
        raise ConfigError("--out RUN: the new run's folder; published checkpoints are not changed")
    else:
        _take_over(arguments)


def _take_over(arguments: argparse.Namespace) -> None:
    from genus.deepspeed_checkpoint import DeepSpeedCheckpoint
    from genus.deepspeed_import import convert

    source = DeepSpeedCheckpoint(arguments.source)
    print(f"{source.folder}: ZeRO stage {source.stage}, {source.ranks} ranks")
    words = arguments.network, arguments.prefix
    path, untrained = convert(source, arguments.target, arguments.out, *words)
    if untrained:
        print(f"without moments, since DeepSpeed did not train them: {', '.join(untrained)}")
    print(f"{path}\ngo on from it with the recipe and --config {arguments.out / 'config.json'}")


def _export(source: Path, target: Path, average: str, as_trained: bool) -> None:
    from safetensors.torch import save_file

    from genus.atomic import replacing
    from genus.checkpoint_reader import read_tensors

    path = the_checkpoint(source)
    fault = fault_of(path)
    if fault:
        raise CheckpointError(f"{path}: {fault}")
    meta, label = read_meta(path), "" if as_trained else _label(path, average)
    names = [owner for owner in meta["scalars"] if owner.startswith("networks.")]
    tensors = {
        f"{owner.removeprefix('networks.')}.{key}": value
        for owner in names
        for key, value in read_tensors(path, f"{owner}/").items()
    }
    if label:  # whole numbers have no average
        tensors |= read_tensors(path, f"ema/{label}/")
    about = {
        "format": "pt",
        "checkpoint": path.name,
        "samples": str(meta["samples"]),
        "average": label or "none",
    }
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata=about)
    whose = f"average {label}" if label else "weights as trained"
    print(f"{target}: {len(tensors)} tensors of {path.name}, {whose}")


def _label(path: Path, wanted: str) -> str:
    """An average in a checkpoint; the first of the run's config where none is ``wanted``."""
    labels = sorted({k.split("/")[1] for k in tensor_shapes(path) if k.startswith("ema/")})
    run = path.absolute().parents[1]
    if not wanted and len(labels) == 1:
        return labels[0]
    if not wanted and (run / "config.json").exists():
        from genus import config
        from genus.provenance import load_recipe

        first: str = config.load(load_recipe(run).Config, run / "config.json").ema.labels()[0]
        wanted = first
    if wanted not in labels:
        raise ConfigError(
            f"{path} has no average '{wanted}': --average {' or '.join(labels)}, or --weights"
        )
    return wanted


def the_checkpoint(path: Path) -> Path:
    """A checkpoint's folder, or the newest whole one of a run's folder."""
    return path if _is_checkpoint(path) else newest(path)


def _is_checkpoint(path: Path) -> bool:
    has_parts = (path / "meta.json").exists() or (path / ".metadata").exists()
    return has_parts or (path.name.startswith("samples-") and path.is_dir())
