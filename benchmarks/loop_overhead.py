"""What the loop costs over a bare hand-written torch loop on the same network and data.

    python benchmarks/loop_overhead.py [--quick] [--json]

Both train the default preset's network by flow matching: same batch, AdamW, clipping, two weight
averages. Ours is ``genus.loop.train`` with shards decoded on the fly, keyed random numbers, metrics
and the check for non-finite updates; the peer is what one would write by hand, once on the same
shards and once with the images already decoded in memory. Blocks alternate in one process; medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genus.config import Command
from genus.data.stream import DataConfig, iterate_once, open_stream
from genus.loop import train
from genus.mirror import TrackingConfig
from genus.parallel import World
from genus.run import Run, RunConfig
from genus.tracking import read_metrics

ROOT = Path(__file__).parents[1]
DATA = DataConfig(url=str(ROOT / "tests" / "data" / "fashion-1000"), size=32)


def recipe() -> Any:
    """recipes/diffusion.py as a module."""
    spec = importlib.util.spec_from_file_location("diffusion", ROOT / "recipes" / "diffusion.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["diffusion"] = module
    spec.loader.exec_module(module)
    return module


Batches = Iterator[tuple[Tensor, Tensor]]


def decoded(cfg: Any) -> Batches:
    """Images and labels through the same shards and decoder as ours."""
    for batch in open_stream(cfg.data, batch=cfg.train.batch, seed=0):
        yield batch["image"], batch["label"]


def preloaded(cfg: Any) -> Batches:
    """Images that lie decoded in memory, through a stock DataLoader."""
    whole = next(iterate_once(cfg.data, 1000))
    data = torch.utils.data.TensorDataset(whole["image"], whole["label"])
    while True:
        yield from torch.utils.data.DataLoader(data, cfg.train.batch, shuffle=True, drop_last=True)


def bare(network: nn.Module, batches: Batches, steps: int) -> float:
    """Milliseconds a step of a loop written by hand, over its last ``steps``."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    averages = [[p.detach().clone() for p in parameters] for _ in range(2)]
    start = 0.0
    for done in range(2 * steps):
        if done == steps:  # the first block warms up, as in ours
            start = time.perf_counter()
        image, label = next(batches)
        x = image.float() / 127.5 - 1
        t = torch.sigmoid(torch.randn(len(x)))
        eps = torch.randn_like(x)
        x_t = x + t[:, None, None, None] * (eps - x)
        label = torch.where(torch.rand(len(x)) < 0.1, 10, label)
        loss = (network(x_t, 1000 * t, label) - (eps - x)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average in averages:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.01)
    return 1000 * (time.perf_counter() - start) / steps


def ours(module: Any, cfg: Any, world: World, steps: int, folder: Path) -> float:
    """Milliseconds a step of genus.loop.train over its last ``steps``, from its own metrics."""
    batch = cfg.train.batch
    block = steps * batch  # the first one warms up; a report is due once a block, as in real runs
    lengths = replace(
        cfg.train, samples=2 * block, status_every=block, sample_every=0, checkpoint_every=0
    )
    cfg = replace(cfg, train=lengths, run=RunConfig(root=str(folder), name="run"))
    stream = open_stream(cfg.data, batch=batch, seed=0, **world.place)
    with Run(Command(cfg, "bench", False), module.__file__, world, stream.info) as run:
        networks, objective = module.build(cfg, stream.info)
        train(run, networks, objective, stream, cfg.train, cfg.optim, cfg.ema)
    return float(read_metrics(folder / "run")[-1]["step_ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 45 s")
    parser.add_argument("--json", action="store_true", help="one JSON object a row (always so)")
    parser.add_argument("--preset", default="fashion")
    arguments = parser.parse_args()
    rounds, steps = (2, 4) if arguments.quick else (7, 15)
    module, world = recipe(), World()
    cfg = module.PRESETS[arguments.preset]
    cfg = replace(cfg, data=DATA, tracking=TrackingConfig(wandb="off"))
    peers = {
        "bare torch loop, same shards": decoded,
        "bare torch loop, images preloaded": preloaded,
    }
    times: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for _ in range(rounds):
        for name, batches in peers.items():
            stream = open_stream(cfg.data, batch=cfg.train.batch, seed=0)
            network = module.build(cfg, stream.info)[0]["denoiser"]
            times[name].append(bare(network, batches(cfg), steps))
        with tempfile.TemporaryDirectory() as folder:
            times["ours"].append(ours(module, cfg, world, steps, Path(folder)))
    mine = statistics.median(times["ours"])
    for name in peers:
        peer = statistics.median(times[name])
        row = {
            "row": f"loop overhead, preset {arguments.preset}, batch {cfg.train.batch}",
            "ours": round(mine, 2),
            "peer": round(peer, 2),
            "peer_name": name,
            "unit": "ms a step",
            "ratio": round(mine / peer, 4),
            "goal": 1.02,
            "lower_is_better": True,
            "rounds": rounds,
            "steps": steps,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
