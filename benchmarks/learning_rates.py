"""Does a learning rate that is found on a narrow transformer serve a wider one?

    python benchmarks/learning_rates.py [--json] [--quick] [--seed 0]

Transformers of depth 4 with heads of 32 channels train on Shakespeare's characters for a fixed
number of tokens (200 steps of 16 windows of 64), at learning rates that are powers of two, in two
ways: *plain*, where all parameters take the rate, and *derived*, where it is the rate of the
narrowest width (``optim.tuned_width``) and the matrices of a wider one take less. At the narrowest
width the two are the same. The loss is validation's, nats a token on the first 500 held-out
windows, at the end of a cosine schedule with warm-up. One process, one thread; the seed gives the
weights, the order of the data being the same for all runs.

A row is a width: ``ours`` is the derived rule's loss at the rate that is best at the narrowest
width, ``peer`` the plain one's at the same rate, and ``ratio`` = peer / ours. ``losses`` holds all
runs by log2 of the rate; ``plain_best`` and ``derived_best`` are log2 of the rates with the least
loss, and ``vertex`` is the lowest point of the parabola through that one and its neighbours.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass

import torch

from genus.data.stream import DataConfig, iterate_once, open_stream
from genus.networks.transformer.decoder import TransformerConfig
from genus.objectives.next_token import NextTokenConfig
from genus.optim.build import AdamWConfig, set_learning_rates
from genus.optim.schedule import ScheduleConfig, factor
from genus.validation import held_out

DEPTH, HEAD, LENGTH, BATCH, CLIP = 4, 32, 64, 16, 1.0
DATA = DataConfig(url="shakespeare", size=LENGTH)
CPU = torch.device("cpu")
Losses = dict[int, float]
"""By log2 of the learning rate."""


@dataclass(frozen=True)
class Sweep:
    """What is measured."""

    widths: tuple[int, ...] = (64, 128, 256)
    rates: tuple[int, ...] = (-10, -9, -8, -7, -6, -5)
    """log2 of the learning rates."""
    steps: int = 200
    windows: int = 500
    """Held-out ones."""


def validation(width: int, rate: int, tuned_width: int, sweep: Sweep, seed: int) -> float:
    """Nats a held-out token after training; inf where it came to no number."""
    samples = sweep.steps * BATCH
    schedule = ScheduleConfig(kind="cosine", warmup=samples // 10)
    optim = AdamWConfig(
        lr=2.0**rate,
        tuned_width=tuned_width,
        betas=(0.9, 0.99),
        weight_decay=0.1,
        schedule=schedule,
    )
    stream = open_stream(DATA, batch=BATCH, seed=0, device=CPU)
    info = stream.info
    torch.manual_seed(seed)
    config = TransformerConfig(width=width, depth=DEPTH, heads=width // HEAD)
    model = config.build(vocabulary=info.vocabulary, length=info.length)
    networks, objective = {"model": model}, NextTokenConfig().build(info.length)
    optimizers = {"model": optim.build(model)}
    for batch in stream:
        set_learning_rates(optimizers, factor(schedule, batch.position, samples))
        loss, _ = objective.loss(networks, batch)
        if not torch.isfinite(loss):
            return math.inf
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        for optimizer in optimizers["model"]:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if stream.position >= samples:
            break
    model.eval()
    test = held_out(DATA)
    assert test is not None
    with torch.no_grad():
        rows = iterate_once(test, 100, limit=sweep.windows, device=CPU)
        values = [objective.log_density(networks, batch).nats for batch in rows]
    return -torch.cat(values).double().mean().item() / info.length


def best(losses: Losses) -> int:
    """log2 of the rate with the least loss."""
    return min(losses, key=lambda rate: losses[rate])


def vertex(losses: Losses) -> float | None:
    """Where the parabola through the least loss and its neighbours is lowest; None at an edge."""
    at = best(losses)
    left, middle, right = losses.get(at - 1), losses[at], losses.get(at + 1)
    if left is None or right is None or not math.isfinite(left + right):
        return None
    return round(at + 0.5 * (left - right) / (left + right - 2 * middle), 2)


def curves(width: int, sweep: Sweep, seed: int) -> dict[str, Losses]:
    """The losses of all rates of a width, by rule."""
    found: dict[str, Losses] = {"plain": {}, "derived": {}}
    for rate in sweep.rates:
        for rule, tuned in (("plain", 0), ("derived", sweep.widths[0])):
            if rule == "derived" and width == tuned:
                found[rule][rate] = found["plain"][rate]
                continue
            start = time.process_time()
            found[rule][rate] = round(validation(width, rate, tuned, sweep, seed), 4)
            seconds = time.process_time() - start
            note = f"width {width}, 2^{rate}, {rule}: {found[rule][rate]:.4f} ({seconds:.1f} s)"
            print(note, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="a small sweep, under 45 s on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sweep = Sweep((32, 64), (-9, -7, -5), steps=20, windows=100) if args.quick else Sweep()
    tuned = None
    for width in sweep.widths:
        found = curves(width, sweep, args.seed)
        if tuned is None:
            tuned = best(found["plain"])
        row = {
            "row": f"loss at the rate of width {sweep.widths[0]}, width {width}",
            "ours": found["derived"][tuned],
            "peer": found["plain"][tuned],
            "peer_name": "AdamW, one rate for all parameters",
            "ratio": round(found["plain"][tuned] / found["derived"][tuned], 4),
            "goal": 1.0,
            "lower_is_better": True,
            "unit": "nats/token",
            "rate": tuned,
            **{f"{rule}_best": best(losses) for rule, losses in found.items()},
            **{f"{rule}_vertex": vertex(losses) for rule, losses in found.items()},
            "losses": found,
            "seed": args.seed,
        }
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        print(f"width {width}, at 2^{tuned}: derived {row['ours']}, plain {row['peer']}")
        for rule, losses in found.items():
            table = "  ".join(f"2^{rate} {loss:.4f}" for rate, loss in losses.items())
            print(f"  {rule:8} {table}  vertex {vertex(losses)}", flush=True)


if __name__ == "__main__":
    main()
