"""The world that the launcher made: processes, device and precision.

Accelerate's CPU paths fail silently (one process where two were asked for, two unconnected
processes that both think they are rank 0), so this one module makes the Accelerator and asserts
that the world is what the launcher promised.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from genus.errors import ConfigError
from genus.over_ranks import mean_over_ranks
from genus.strategies.choice import Strategy, choose, switches_off

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
FLIGHT_RECORDER = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
"""NCCL keeps its last collectives, and writes them down when one times out: without them nobody
can tell which rank a hang waits for. docs/launch.md"""

# float8 is bf16's autocast with other products inside the blocks (strategies/float8.py)
_ACCELERATE_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}


class World:
    """Rank, size, device and precision of this process, and what several processes agree on."""

    def __init__(self, precision: Precision = "auto", strategy: Strategy = "auto") -> None:
        """Raises ConfigError where the launcher promised another world than there is, or
        contradicts the config."""
        _refuse_silent_single_process()
        for name, value in FLIGHT_RECORDER.items():
            os.environ.setdefault(name, value)
        self.choice = choose(strategy)
        with switches_off():
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision=_ACCELERATE_NAMES[_resolve(precision)],
                # Networks with buffers run twice before a backward in some objectives.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        self.rank: int = self.accelerator.process_index
        self.size: int = self.accelerator.num_processes
        self.local_rank: int = self.accelerator.local_process_index
        self.device: torch.device = self.accelerator.device
        self.precision = _resolve(precision)
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size != promised:
            raise ConfigError(
                f"the launcher promised {promised} processes (WORLD_SIZE) but Accelerate "
                f"connected {self.size}: launch with accelerate launch --multi_gpu, torchrun, or a "
                "file of launch/accelerate/"
            )
        # Two groups on the host: collectives of two threads in one group would interleave.
        self.control_group = dist.new_group(backend="gloo") if self.size > 1 else None
        self.checkpoint_group = dist.new_group(backend="gloo") if self.size > 1 else None
        self._pending: tuple[Tensor, dist.Work] | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def place(self) -> dict[str, Any]:
        """rank, world and device, as the stream wants them."""
        return {"rank": self.rank, "world": self.size, "device": self.device}

    def describe(self) -> str:
        """One line for the log."""
        processes = "1 process" if self.size == 1 else f"{self.size} processes"
        kind = self.device.type
        if kind == "cuda":
            kind = torch.cuda.get_device_name(self.device)
        threads = f"{torch.get_num_threads()} threads each"
        is_spread = self.choice.stage or (self.size > 1 and self.choice.name != "ddp")
        spread = f"{self.choice}, " if is_spread else ""
        return f"{processes}, {spread}{kind}, {self.precision}, {threads}"

    # ---- agreement -------------------------------------------------------------------------------

    def max_(self, flag: Tensor) -> Tensor:
        """In-place maximum over ranks of a device tensor."""
        if self.size > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag

    def mean(self, values: Tensor) -> Tensor:
        """In place: the mean over ranks of a device tensor."""
        return mean_over_ranks(values)

    def agree(self, flags: list[bool]) -> list[bool]:
        """True where any rank had said True by the call before this one.

        The exchange of one call is awaited in the next, so it costs no waiting, and all ranks learn
        of a flag in the same step.
        """
        mine = torch.tensor(flags, dtype=torch.int32)
        if self.control_group is None:
            return flags
        agreed, self._pending = self._pending, None
        work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self.control_group, async_op=True)
        assert work is not None
        self._pending = (mine, work)
        if agreed is None:
            return [False] * len(flags)
        agreed[1].wait()
        return [bool(flag) for flag in agreed[0]]

    def barrier(self) -> None:
        """Wait for all ranks, on the host."""
        if self.control_group is not None:
            dist.barrier(group=self.control_group)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable-by-us value (paths, ints, strings), on every rank."""
        if self.control_group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control_group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable-by-us value, in rank order, on every rank."""
        if self.control_group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control_group)
        return found

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Rows (B, ...) of all ranks in rank order on rank 0, on the host; None elsewhere."""
        if self.control_group is None:
            return rows.cpu()
        parts: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(rows.cpu().numpy(), parts, dst=0, group=self.control_group)
        return torch.cat([torch.from_numpy(p) for p in parts]) if parts is not None else None

    def close(self) -> None:
        """Leave the process group; call once, at the very end."""
        if self._pending is not None:
            self._pending[1].wait()
        self.accelerator.end_training()


def _resolve(precision: Precision) -> Literal["fp32", "bf16", "fp16", "fp8"]:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    launched = {"no": "fp32"}.get(launched, launched)
    if launched not in _ACCELERATE_NAMES:
        raise ConfigError(f"--mixed_precision {launched}: use bf16, fp16, fp8 or no")
    if "fp16" in (launched, precision) and not torch.cuda.is_available():
        raise ConfigError("fp16 needs a GPU: take bf16 or fp32")
    if "fp8" in (launched, precision):
        _check_fp8()
    if precision == "auto":
        return launched  # type: ignore[return-value]
    if launched not in ("fp32", precision):
        raise ConfigError(
            f"train.precision={precision} contradicts accelerate's --mixed_precision {launched}: "
            "say it in one place"
        )
    return precision


def _check_fp8() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise ConfigError("fp8 needs a GPU with float8 products (H100, L40S or newer): take bf16")
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("fp8 needs torchao: pip install 'genus[fp8]', or take bf16")


def _refuse_silent_single_process() -> None:
    # `accelerate launch --num_processes 2` without GPUs, with --cpu or a MULTI_CPU file starts ONE
    # process and says nothing; its only trace is a rendezvous address without a rank.
    by_accelerate = "ACCELERATE_USE_CPU" in os.environ
    if by_accelerate and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate was asked for several processes but starts only one that way: use "
            "--config_file launch/accelerate/cpu2.yaml, or accelerate launch --multi_gpu, or "
            "torchrun (for one process: unset MASTER_ADDR)"
        )
