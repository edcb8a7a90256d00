"""What a training run measures about itself: means of losses, throughput, waiting, memory, MFU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genus.parallel import World

# Dense peak in TFLOP/s (bfloat16, the makers' data sheets); MFU is not reported for other devices.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0}


class Meter:
    """Collects on the device, reads back only when a report is due."""

    def __init__(self, world: World, flops_per_sample: float = 0.0) -> None:
        self.world = world
        self.flops_per_sample = flops_per_sample
        # by name: the sum of weight * value, and of the weights
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._waited = 0.0
        self._steps = 0
        self._began = time.perf_counter()

    def add(self, metrics: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add device scalars without synchronisation; what is not finite does not count."""
        for name, value in metrics.items():
            value = value.detach().float()
            counts = torch.isfinite(value).float() * weight
            total, weights = self._sums.get(
                name, (torch.zeros_like(value), torch.zeros_like(value))
            )
            self._sums[name] = total + value.nan_to_num(0.0, 0.0, 0.0) * weight, weights + counts

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> None:
        """One more step is done."""
        self._steps += 1

    def report(self, batch: int) -> dict[str, float]:
        """Means over ranks since the last report, and this rank's timings; starts anew."""
        names = sorted(self._sums)
        row: dict[str, float] = {}
        if names:
            pairs = torch.stack([torch.stack(self._sums[name]) for name in names])
            pairs = self.world.mean(pairs)
            row = dict(zip(names, (pairs[:, 0] / pairs[:, 1]).tolist(), strict=True))
        seconds = time.perf_counter() - self._began
        steps = max(1, self._steps)
        row["step_ms"] = 1000 * seconds / steps
        row["data_wait_ms"] = 1000 * self._waited / steps
        row["data_wait_share"] = self._waited / seconds
        row["samples_per_second"] = self._steps * batch / seconds
        row["memory_gib"] = peak_memory(self.world.device) / 2**30
        if self.world.device.type == "cpu":
            row["memory_grown_gib"] = (peak_memory(self.world.device) - _AT_START) / 2**30
        if self.flops_per_sample:
            achieved = row["samples_per_second"] * self.flops_per_sample
            row["model_tflops_per_second"] = achieved / 1e12
            peak = peak_tflops(self.world.device)
            if peak:
                row["mfu"] = achieved / 1e12 / (peak * self.world.size)
        self._sums = {}
        self.restart()
        return row

    def restart(self) -> None:
        """Start timing anew: what went before (an evaluation, say) is no training time."""
        self._waited, self._steps, self._began = 0.0, 0, time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the allocator on CUDA, resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_tflops(device: torch.device) -> float | None:
    """The device's dense bfloat16 peak, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def training_flops(network: nn.Module, *inputs: Tensor | None) -> float:
    """FLOPs of one forward and backward of ``network`` on meta-device inputs with B = 1.

    The backward is counted as twice the forward, the usual model-FLOPs convention.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*inputs)
    return 3.0 * counter.get_total_flops()


_AT_START = peak_memory(torch.device("cpu"))
"""Of this process when it had imported torch and this module, before any network."""
