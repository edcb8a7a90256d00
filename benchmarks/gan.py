"""A StyleGAN2 training iteration at 64 pixels against stylegan2-pytorch (lucidrains).

    python benchmarks/gan.py [--json] [--quick] [--out FILE] [--peers FOLDER] [--threads 1]

The peer is its own Trainer.train(), ours what genus.loop does of a step: both phases, the
penalties that are due, both Adams, and ours its average of the weights (the peer's are left out:
it averages at each 10th step). Images are noise in memory, batch and precision (fp32) the same,
hinge loss, a latent of 512, a mapping of 8 layers, style mixing of 0.9, no augmentation, learning
rate 0. Both penalise real and generated images, by |grad D|^2 (ours as R1 + R2; the peer's
(|grad D| - 0)^2), in a phase of its own (ours, as Karras et al. 2020 have it, on other samples) or
within the discriminator's step (the peer). Path lengths are ours of every other row, as published,
and the peer's of every row.

Steps of three kinds (plain; with the penalty; with penalty and path lengths) alternate between the
two in one process, and are weighed as they occur: at the peer's cadences (penalty at each 4th step,
path at each 32nd), which its code has fixed, and at StyleGAN2's (16th, 4th), where a step with path
lengths alone is one of both less what the penalty adds. CPU time of the process, which a busy
neighbour disturbs less than the wall clock, whose ratio is beside it; medians of rounds, and the
quartiles of the rounds' ratios. On CUDA wall time, with synchronisation.

The two are built differently: the peer's discriminator has three 3x3 convolutions a block and goes
down to 2 pixels, its generator has three at 4 pixels and convolves after upsampling. So no size
makes all equal, and there are two. "one width" is a StyleGAN2Config as it is, with the peer's
features in the discriminator and twice as many in the generator, which brings the generators'
parameters and all multiplications of a forward closest (at the peer's default capacity of 16:
channels_base 4096). "peer's widths" has its features in both, and fewer parameters and
multiplications. Rows have both sides' widths, parameters and multiplications of a forward a sample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gan_peer import NAME, Kind, PeerTraining, load
from gan_training import PLAIN, Training, parameters
from passport import passport
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genus.loop import TrainConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.objectives.adversarial import AdversarialConfig

GOAL = 1.3
RESOLUTION, STYLES, PEER_STYLES, LATENT = 64, 10, 5, 512
OBJECTIVE = AdversarialConfig(
    game="hinge", r1=20.0, r2=20.0, penalty_every=4, path_length=2.0, path_length_every=32,
    mixing=0.9,
)  # fmt: skip
PHASES: dict[Kind, tuple[str, ...]] = {
    "plain": PLAIN,
    "penalty": (*PLAIN, "penalty"),
    "penalty and path": (*PLAIN, "penalty", "path_length"),
}
CADENCES: dict[str, dict[Kind, float]] = {
    "penalty at each 4th, path at each 32nd": {
        "plain": 24 / 32, "penalty": 7 / 32, "penalty and path": 1 / 32,
    },
    "penalty at each 16th, path at each 4th": {
        "plain": 15 / 16, "penalty": 1 / 16 - 1 / 4, "penalty and path": 1 / 4,
    },
}  # fmt: skip
"""Share of each kind of step."""
Networks = dict[str, nn.Module]
Seconds = dict[Kind, list[float]]


@dataclass(frozen=True)
class Size:
    """Of both. Features at r pixels are base / r and at most 512; the peer's come of capacity."""

    name: str
    generator: int
    discriminator: int
    capacity: int
    batch: int

    def build(self) -> Networks:
        """Ours."""
        shape = (3, RESOLUTION, RESOLUTION)
        networks = StyleGAN2Config(channels_base=self.generator).build(shape, 0)
        judge = StyleGAN2Config(channels_base=self.discriminator).build(shape, 0)
        return {**networks, "discriminator": judge["discriminator"]}

    @property
    def widths(self) -> dict[str, list[list[int]]]:
        """[ours, the peer's] at 4, 8, ..., 64 pixels."""
        sizes = [4 << number for number in range(5)]
        ours = {
            name: [min(512, base // size) for size in sizes]
            for name, base in (
                ("synthesis", self.generator),
                ("discriminator", self.discriminator),
            )
        }
        peer = {
            "synthesis": [min(512, 32 * self.capacity >> number) for number in range(5)],
            "discriminator": [min(512, 64 * self.capacity >> number) for number in range(5)],
        }
        return {name: [ours[name], peer[name]] for name in ours}


def sizes(capacity: int, batch: int) -> list[Size]:
    """The two for the peer's capacity."""
    narrow, wide = 128 * capacity, 256 * capacity
    return [
        Size("one width", wide, wide, capacity, batch),
        Size("peer's widths", narrow, wide, capacity, batch),
    ]


def multiplications(call: Callable[[], object]) -> float:
    """Millions."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops: int = counter.get_total_flops()
    return round(flops / 2e6, 1)


def described(networks: Networks, device: torch.device, styles: int, noise: bool) -> dict[str, Any]:
    """Parameters by network, and multiplications of a forward of one sample."""
    styled = torch.zeros(1, styles, LATENT, device=device)
    image = torch.zeros(1, 3, RESOLUTION, RESOLUTION, device=device)
    drawn = torch.zeros(1, RESOLUTION, RESOLUTION, 1, device=device) if noise else None
    return {
        "parameters": {name: parameters(network) for name, network in networks.items()},
        "forward_megamultiplications": {
            "synthesis": multiplications(lambda: networks["synthesis"](styled, drawn)),
            "discriminator": multiplications(lambda: networks["discriminator"](image)),
        },
    }


def clock(device: torch.device, cpu_time: bool) -> float:
    """Seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if cpu_time else time.perf_counter()


def alternating(
    ours: Training, peer: PeerTraining, rounds: int
) -> tuple[list[Seconds], list[Seconds]]:
    """[ours, the peer's] in CPU time, and in wall time; of each round, after one to warm up."""
    steps: list[Callable[[Kind], None]] = [lambda kind: ours.step(PHASES[kind]), peer.step]
    cpu: list[Seconds] = [{kind: [] for kind in PHASES} for _ in steps]
    wall: list[Seconds] = [{kind: [] for kind in PHASES} for _ in steps]
    for number in range(rounds + 1):
        for kind in PHASES:
            for who in (0, 1) if number % 2 else (1, 0):
                began = [clock(ours.device, cpu_time) for cpu_time in (True, False)]
                steps[who](kind)
                ended = [clock(ours.device, cpu_time) for cpu_time in (True, False)]
                if number:
                    cpu[who][kind].append(ended[0] - began[0])
                    wall[who][kind].append(ended[1] - began[1])
    return cpu, wall


def per_step(seconds: Seconds, shares: dict[Kind, float]) -> list[float]:
    """Mean milliseconds of a step at that cadence, of each round."""
    rounds = len(seconds["plain"])
    return [1000 * sum(shares[k] * seconds[k][r] for k in shares) for r in range(rounds)]


def measure(size: Size, module: Any, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each cadence."""
    shape = (3, RESOLUTION, RESOLUTION)
    networks = size.build()
    train = TrainConfig(batch=size.batch, clip=0.0, precision="fp32", strategy="ddp")
    ours = Training(networks, OBJECTIVE, train, shape)
    peer = PeerTraining(module, RESOLUTION, size.capacity, size.batch)
    about = described(networks, ours.device, STYLES, noise=False)
    theirs = described(peer.networks, ours.device, PEER_STYLES, noise=True)
    cuda = ours.device.type == "cuda"
    cpu, wall = alternating(ours, peer, rounds)
    clocked = wall if cuda else cpu
    kinds = {
        kind: [round(1000 * statistics.median(one[kind]), 1) for one in clocked] for kind in PHASES
    }
    for cadence, shares in CADENCES.items():
        mine, others = (per_step(one, shares) for one in clocked)
        by_wall = [statistics.median(per_step(one, shares)) for one in wall]
        ratios = [b / a for a, b in zip(mine, others, strict=True)]
        a, b = statistics.median(mine), statistics.median(others)
        yield {
            "row": f"StyleGAN2 {RESOLUTION} px train step, {size.name}, {cadence}",
            "ours": round(a, 1),
            "peer": round(b, 1),
            "peer_name": NAME,
            "ratio": round(b / a, 3),
            "goal": GOAL,
            "unit": "ms a step, " + ("wall" if cuda else "CPU time"),
            "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "wall_ratio": round(by_wall[1] / by_wall[0], 3),
            "batch": size.batch,
            "kinds_ms": kinds,
            "widths": size.widths,
            **about,
            **{f"peer_{name}": value for name, value in theirs.items()},
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "precision": "fp32",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="small networks, few rounds")
    parser.add_argument("--out", type=Path, help="file for the rows and the passport")
    parser.add_argument("--peers", type=Path, default=Path("/tmp/genus-peers-gan"))
    parser.add_argument("--capacity", type=int, default=16, help="the peer's; its default is 16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    capacity, batch, rounds = (4, 4, 2) if args.quick else (args.capacity, args.batch, args.rounds)
    module = load(args.peers)
    rows = []
    for size in sizes(capacity, batch)[: 1 if args.quick else None]:
        for row in measure(size, module, rounds):
            rows.append(row)
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            counts, others = row["parameters"], row["peer_parameters"]
            print(
                f"{row['row']}: {row['ours']} ms, {row['peer_name']} {row['peer']} ms, ratio "
                f"{row['ratio']} {row['ratio_quartiles']} (goal {GOAL}; wall {row['wall_ratio']}); "
                f"parameters {counts} and {others}; widths {row['widths']}; megamultiplications "
                f"{row['forward_megamultiplications']} and "
                f"{row['peer_forward_megamultiplications']}; batch {row['batch']}, "
                f"{row['device']}, {row['threads']} thread(s)",
                flush=True,
            )
    if args.out:
        body = {"passport": passport("python benchmarks/gan.py"), "rows": rows}
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
