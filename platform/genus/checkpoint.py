"""Checkpoints: named state objects, written asynchronously, published atomically, never lost.

A save copies the tensors to host memory, and a thread does the rest: reserve a hidden folder ->
write (torch.distributed.checkpoint: every rank its share) -> verify (sizes, checksums) -> publish
(one rename) -> retain (prune what the rules let go). A kill at any moment leaves the published
checkpoints as they were. Any number of processes can load what any number has saved.

    checkpoints/samples-000000012800/   meta.json   .metadata   __RANK_0.distcp
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from genus.checkpoint_reader import (
    FORMAT,
    crc_of,
    fault_of,
    load_tensors,
    published,
    read_index,
    read_meta,
    samples_of,
    seal,
    tensor_shapes,
)
from genus.errors import CheckpointError
from genus.ownership import NotOwnerError, Owner
from genus.parallel import World
from genus.parts import Part, SavePlanner
from genus.state import State, Stateful


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: Path,
        world: World,
        keep_last: int = 2,
        keep_every: int = 0,
        owner: Owner | None = None,
        file_per_tensor: bool = False,
    ) -> None:
        """``keep_last`` newest are kept, and one of every ``keep_every`` samples (0: none).

        ``file_per_tensor``: torch's writer holds what goes into a file until its end, so a
        conversion of what does not fit twice into memory writes many.

        ``owner``: who may publish and prune here; None where nobody else can be at work.
        """
        self.file_per_tensor = file_per_tensor
        self.folder = folder
        self.owner = owner
        self.world = world
        self.keep_last = max(1, keep_last)
        self.keep_every = keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._began = time.monotonic()
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            _remove(folder.glob(".trash-*"))  # of a kill
            # Of a kill, or of a stale writer, which could publish a half of it: as a whole.
            _remove([_out_of_sight(unfinished) for unfinished in folder.glob(".saving-*")])
        world.barrier()

    # ---- save ------------------------------------------------------------------------------------

    def save(self, states: Mapping[str, Stateful], samples: int) -> None:
        """Copy the state and return; a save still under way is awaited first."""
        self.wait()
        self._began = time.monotonic()
        target = self.folder / f"samples-{samples:012d}"
        # A published checkpoint is never overwritten. One rank looks, so that all do the same.
        if self.world.broadcast(target.exists()):
            return
        tensors: dict[str, Tensor | Part] = {}
        scalars: dict[str, dict[str, int | float | str]] = {}
        for name, state in states.items():
            scalars[name] = {}
            for key, value in state.state_dict().items():
                if isinstance(value, Part):
                    tensors[f"{name}/{key}"] = value.on_host()
                elif isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value.detach().to("cpu", copy=True)
                else:
                    scalars[name][key] = value
        self._thread = threading.Thread(
            target=self._write, args=(target, tensors, scalars, samples), name="checkpoint"
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the last save ended in an error, which ``wait`` will raise."""
        return self._error is not None

    def wait(self) -> None:
        """Wait for the save under way; raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, target: Path, tensors: dict[str, Tensor | Part], scalars: dict[str, Any], samples: int
    ) -> None:
        """The checkpoint thread. All ranks leave it with the same outcome, once it is known."""
        # A stale writer must not write to what its successor will publish.
        whose = self.owner.token if self.owner is not None else "own"
        reserved = self.folder / f".saving-{whose}-{target.name}"
        try:
            dcp_save(
                tensors,
                storage_writer=_Writer(
                    reserved, sync_files=True, single_file_per_rank=not self.file_per_tensor
                ),
                planner=SavePlanner(),
                process_group=self.world.checkpoint_group,
                no_dist=self.world.size == 1,
            )
            parts = self._exchange(_checksums, reserved, self.world.rank)
            meta = {
                "format": FORMAT,
                "samples": samples,
                "scalars": scalars,
                "files": {name: entry for part in parts for name, entry in part.items()},
            }
            self._exchange(self._publish, reserved, target, meta)
        except NotOwnerError as error:
            self._error = error
            shutil.rmtree(reserved, ignore_errors=True)
        except BaseException as error:
            self._error = CheckpointError(_explain(error, target))
            shutil.rmtree(reserved, ignore_errors=True)  # give a full disk its space back

    def _exchange(self, do: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``do`` returns on every rank; one rank's error becomes everybody's."""
        try:
            mine = do(*arguments)
        except Exception as error:
            mine = error
        results = [mine]
        if self.world.checkpoint_group is not None:
            results = [None] * self.world.size
            dist.all_gather_object(results, mine, group=self.world.checkpoint_group)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _publish(self, reserved: Path, target: Path, meta: dict[str, Any]) -> None:
        if not self.world.is_first:
            return
        index = read_index(reserved).storage_data
        unwritten = {entry.relative_path for entry in index.values()} - set(meta["files"])
        if unwritten:
            raise CheckpointError(f"no rank has written {', '.join(sorted(unwritten))}")
        meta["seconds"] = round(time.monotonic() - self._began, 3)  # the launch checks want it
        _write_durably(reserved / "meta.json", seal(meta))
        _sync_folder(reserved)
        if self.owner is not None:
            self.owner.check()
        reserved.rename(target)
        _sync_folder(self.folder)
        try:
            self._retain()
        except OSError as error:  # the new one is safe: no reason to stop the training
            print(f"{self.folder}: can't prune old checkpoints: {error}", flush=True)

    def _retain(self) -> None:
        if self.owner is not None:
            self.owner.check()
        paths, milestones = published(self.folder), set()
        for path in paths:
            period = samples_of(path) // self.keep_every if self.keep_every else 0
            is_milestone = period > 0 and period not in milestones
            milestones.add(period)  # the first of each period is kept for good
            if is_milestone or path in paths[-self.keep_last :]:
                continue
            shutil.rmtree(_out_of_sight(path), ignore_errors=True)

    # ---- load ------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The newest whole checkpoint, None before the first; the same on all ranks.

        Damaged ones are set aside. Raises CheckpointError where nothing but damaged ones is left:
        to begin anew is the user's decision.
        """
        found = self.world.broadcast(self._newest() if self.world.is_first else None)
        if isinstance(found, CheckpointError):
            raise found
        result: Path | None = found
        return result

    def _newest(self) -> Path | CheckpointError | None:
        for path in reversed(published(self.folder)):
            fault = fault_of(path)
            if not fault:
                return path
            aside = path.with_name(f"damaged-{path.name}-{int(time.time())}")
            print(f"{path}: {fault}; set aside as {aside.name}", flush=True)
            try:
                path.rename(aside)
            except OSError as error:
                return CheckpointError(f"can't set the damaged {path} aside: {error}")
        damaged = sorted(path.name for path in self.folder.glob("damaged-*"))
        if not damaged:
            return None
        return CheckpointError(
            f"{self.folder} holds no whole checkpoint any more, only {', '.join(damaged)}: put a "
            "copy in place, or remove the damaged ones (or take another run.name) to begin anew"
        )

    def load(self, states: Mapping[str, Stateful], path: Path) -> int:
        """Load every named state from ``path``; returns the progress in samples.

        Raises CheckpointError that names the first thing that does not fit.
        """
        meta, shapes = read_meta(path), tensor_shapes(path)
        if meta["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {meta['format']}, this version of genus reads {FORMAT}"
            )
        target: dict[str, Tensor | Part] = {}
        for name, state in states.items():
            if name not in meta["scalars"]:
                raise CheckpointError(_lacks(path, name))
            have = {k: v for k, v in state.state_dict().items() if isinstance(v, Tensor | Part)}
            _check(path, name, have, shapes)
            # what the object has not made yet (optimizer state) starts empty
            blank = getattr(state, "blank", _blank)
            for key, (shape, dtype) in shapes.items():
                owner, _, rest = key.partition("/")
                if owner == name:
                    target[key] = have[rest] if rest in have else blank(rest, shape, dtype)
        load_tensors(path, target)
        for name, state in states.items():
            prefix = f"{name}/"
            loaded: State = {k[len(prefix) :]: v for k, v in target.items() if k.startswith(prefix)}
            try:
                state.load_state_dict({**loaded, **meta["scalars"][name]})
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                raise CheckpointError(
                    f"{path}: '{name}' does not fit this configuration ({why}). {_REMEDY}"
                ) from error
        return int(meta["samples"])


_REMEDY = "Resume with that run's config.json, or take another run.name"


def _blank(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _lacks(path: Path, what: str) -> str:
    return f"{path} holds no '{what}': it was saved by another configuration. {_REMEDY}"


def _check(
    path: Path,
    name: str,
    have: dict[str, Tensor | Part],
    shapes: dict[str, tuple[Any, torch.dtype]],
) -> None:
    for key, tensor in have.items():
        if f"{name}/{key}" not in shapes:
            raise CheckpointError(_lacks(path, f"{name}/{key}"))
        shape, dtype = shapes[f"{name}/{key}"]
        if tuple(shape) != tuple(tensor.shape) or dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: '{name}/{key}' is {dtype} {tuple(shape)}, this run's is {tensor.dtype} "
                f"{tuple(tensor.shape)}: was the network changed? {_REMEDY}"
            )


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _out_of_sight(folder: Path) -> Path:
    """Rename what is to be removed, as a whole: removing it takes a while."""
    trash = folder.with_name(f".trash-{folder.name.lstrip('.')}")
    try:
        folder.rename(trash)
    except FileNotFoundError:
        pass  # a stale writer published it, or removed it, in this moment
    return trash


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        return None  # the folder's old name and a random number: nobody reads them


def _checksums(folder: Path, rank: int) -> dict[str, list[int]]:
    """Size and CRC-32 of the files that this rank wrote; the first rank adds the index."""
    files = sorted(folder.glob(f"__{rank}_*.distcp"))
    if rank == 0:
        files.append(folder / ".metadata")
    return {file.name: [file.stat().st_size, crc_of(file)] for file in files}


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names durable; some network file systems can't, and need not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _explain(error: BaseException, target: Path) -> str:
    causes = _causes(error)
    # DCP's own exception is only a list of the ranks' ones, with their tracebacks
    told = [cause for cause in causes if not getattr(cause, "failures", None)]
    text = "; ".join(dict.fromkeys(f"{type(cause).__name__}: {cause}" for cause in told))
    full = any(getattr(c, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for c in causes)
    if full or "No space left" in text or "file write failed" in text:
        free = shutil.disk_usage(target.parent).free
        return (
            f"can't save {target}: the disk is full or over quota ({free / 2**20:.0f} MiB free). "
            "The checkpoints before it are intact: make room, then start the same command again "
            "to resume"
        )
    return f"can't save {target}: {text[:1500]}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error, all that it was raised from, and what DCP's ranks reported."""
    found = [error]
    for cause in found:  # grows as it is walked
        inner = [cause.__cause__, cause.__context__]
        # {rank: (exception, its traceback)}
        inner += [failure[0] for failure in getattr(cause, "failures", {}).values()]
        found += [e for e in inner if e is not None and e not in found]
    return found
