"""Glow's training step and its inverse against normflows' GlowBlock of the same configuration.

    python benchmarks/glow.py [--json] [--quick] [--device cuda] [--bf16]

A step is forward, the loss in bits/dim, backward and an Adam update; the inverse is what sampling
does: latents drawn, mapped to images. Both have L levels of K steps (actnorm, invertible 1x1
convolution by LU, affine coupling by 3x3, 1x1 and 3x3 convolutions) on 3 x 32 x 32, and no network
before the factored-out halves; normflows' base has a mean and a scale a channel, ours is N(0, 1).
Its weights are copied into ours, and the log-densities compared before any timing. The couplings'
convolutions are the same work on both sides, and most of it on a CPU.

Calls of ours and the peer's alternate in one process, and medians are printed: on a CPU with one
thread, in CPU time of the process, which a busy neighbour disturbs less than the wall clock; on
CUDA in wall time with synchronisation.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from normflows_weights import copy_glow, peer_glow
from torch import Tensor, nn

from genus.networks.flows.bijection import Bijection
from genus.networks.flows.image import GlowConfig

STEP_GOAL, INVERSE_GOAL = 1.5, 3.0
DIMS = 3 * 32 * 32
Call = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """One configuration."""

    steps: int
    levels: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"K={self.steps} L={self.levels} w={self.width} batch {self.batch}"


SIZES = [Size(8, 3, 64, 16), Size(16, 2, 128, 16), Size(8, 3, 64, 1), Size(8, 5, 64, 1)]
"""The steps of a batch of 1 are not measured: nobody trains so, but one image is drawn so."""
PUBLISHED = Size(32, 3, 512, 64)
"""Glow of CIFAR-10, measured on CUDA alone."""


def log_density(flow: Bijection, x: Tensor) -> Tensor:
    z, log_det = flow(x)
    return log_det - z.square().sum(1) / 2 - DIMS / 2 * math.log(2 * math.pi)


def stepper(network: nn.Module, density: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> Call:
    """One training step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = -density(x).mean() / (DIMS * math.log(2))
        loss.backward()
        optimizer.step()

    return step


def samplers(ours: Bijection, peer: nn.Module, size: Size, device: str) -> tuple[Call, Call]:
    """Latents drawn, images made."""

    @torch.no_grad()
    def sample() -> Tensor:
        return ours.inverse(torch.randn(size.batch, DIMS, device=device))

    @torch.no_grad()
    def peer_sample() -> Tensor:
        images: Tensor = peer.sample(size.batch)[0]
        return images

    return sample, peer_sample


def timed(call: Call, cuda: bool) -> float:
    """Milliseconds of one call."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def medians(ours: Call, peer: Call, rounds: int, cuda: bool) -> tuple[float, float]:
    """Of alternating calls, after two of each to warm up."""
    times = [(timed(ours, cuda), timed(peer, cuda)) for _ in range(rounds + 2)][2:]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def measure(size: Size, rounds: int, device: str, bf16: bool) -> Iterator[dict[str, object]]:
    """Agreement first, then the row of the step and the row of the inverse."""
    peer = peer_glow(size.steps, size.levels, size.width).to(device)
    config = GlowConfig(steps=size.steps, levels=size.levels, width=size.width, learned_prior=False)
    ours = config.build(channels=3, resolution=32).to(device)
    x = torch.rand(max(size.batch, 16), 3, 32, 32, device=device) - 0.5
    peer.log_prob(x, None)  # initialises its actnorms, which takes more than one image
    x = x[: size.batch]
    copy_glow(peer, ours)
    with torch.no_grad():
        reference = peer.log_prob(x, None)
        difference = ((log_density(ours, x) - reference).abs().max() / DIMS).item()
    assert difference < 1e-5, f"{size}: log-densities differ by {difference} nats/dim"

    counts = [sum(p.numel() for p in network.parameters()) for network in (ours, peer)]
    common = {
        "peer_name": "normflows GlowBlock",
        "unit": "ms",
        "parameters": counts[0],
        "peer_parameters": counts[1],
        "difference": difference,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "precision": "bf16 autocast" if bf16 else "fp32",
    }
    step = stepper(ours, lambda x: log_density(ours, x), x, bf16)
    peer_step = stepper(peer, lambda x: peer.log_prob(x, None), x, bf16)
    inverse, peer_inverse = samplers(ours, peer, size, device)
    for what, calls, goal in (
        ("step", (step, peer_step), STEP_GOAL),
        ("inverse", (inverse, peer_inverse), INVERSE_GOAL),
    ):
        if what == "step" and size.batch == 1:
            continue
        a, b = medians(*calls, rounds, device == "cuda")
        row = {"row": f"glow {what}, {size}", "ours": round(a, 2), "peer": round(b, 2)}
        yield {**row, "ratio": round(b / a, 3), "goal": goal, "lower_is_better": True, **common}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 45 s on a CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="forward under bf16 autocast")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    for size in [*SIZES, PUBLISHED] if args.device == "cuda" else SIZES:
        for row in measure(size, 3 if args.quick else 15, args.device, args.bf16):
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['row']}: {row['ours']} ms, {row['peer_name']} {row['peer']} ms, ratio "
                    f"{row['ratio']} (goal {row['goal']}); {row['parameters']:,} and "
                    f"{row['peer_parameters']:,} parameters; log-densities differ by "
                    f"{row['difference']:.1e} nats/dim; {row['device']}, {row['precision']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
