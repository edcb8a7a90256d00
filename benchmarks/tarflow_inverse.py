"""TarFlow's inverse with cached keys and values against the naive one, by the number of patches.

    python benchmarks/tarflow_inverse.py [--json] [--quick] [--device cuda] [--plot FILE.png]

The naive inverse calls the whole network on the patches so far for each next patch. Both give the
same images, which is checked first. With N patches of width W a layer costs N steps of 12 W^2
multiplications and of attention over N keys with the cache, N passes of up to N such steps without:
N + N^2/W against N^2 + N^3/W, up to factors. Times alternate in one process; medians: on a CPU with
one thread, in CPU time of the process; on CUDA in wall time with synchronisation.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genus.networks.flows.bijection import Chain
from genus.networks.flows.tarflow import MetaBlock, TarFlowConfig

GOAL = 3.0
"""From 64 patches on; the gain grows with them."""
GOAL_FROM = 64
WIDTH, BLOCKS, LAYERS, PATCH, BATCH = 128, 2, 2, 2, 8
SIDES = (4, 6, 8, 12, 16, 24)
"""Patches along an image's side."""


def naive_inverse(flow: Chain, z: Tensor) -> Tensor:
    """The inverse by whole forward passes of each block's network."""
    for one in reversed(flow.maps):
        z = naive_block(one, z) if isinstance(one, MetaBlock) else one.inverse(z)  # type: ignore[operator]
    return z


def naive_block(block: MetaBlock, z: Tensor) -> Tensor:
    z = z.flip(1) if block.backwards else z
    x, places = z[:, :1], block.places(None)
    for i in range(1, z.shape[1]):
        out = block.predict(x, places[:i])  # of all patches so far; the last row is what is needed
        a, b = out[:, -1:].chunk(2, dim=2)
        x = torch.cat([x, z[:, i : i + 1] * a.exp() + b], dim=1)
    return x.flip(1) if block.backwards else x


def timed(call: Callable[[], object], cuda: bool) -> float:
    """Milliseconds of one call."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


@torch.no_grad()
def measure(side: int, rounds: int, device: str) -> dict[str, object]:
    """Agreement first, then the medians of alternating calls."""
    config = TarFlowConfig(patch=PATCH, width=WIDTH, blocks=BLOCKS, layers=LAYERS, head_width=64)
    flow = config.build(channels=3, resolution=side * PATCH)
    assert isinstance(flow, Chain)
    for parameter in flow.parameters():  # the last layers start at zero
        parameter += 0.02 * torch.randn_like(parameter)
    flow = flow.to(device)
    z = torch.randn(BATCH, 3 * (side * PATCH) ** 2, device=device)
    difference = (flow.inverse(z) - naive_inverse(flow, z)).abs().max().item()
    assert difference < 1e-3, f"{side**2} patches: inverses differ by {difference}"
    calls: list[Callable[[], object]] = [lambda: flow.inverse(z), lambda: naive_inverse(flow, z)]
    times = [[timed(call, device == "cuda") for call in calls] for _ in range(rounds)]
    ours, naive = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "row": f"tarflow inverse, {side**2} patches",
        "ours": round(ours, 2),
        "peer": round(naive, 2),
        "peer_name": "naive inverse",
        "ratio": round(naive / ours, 3),
        "goal": GOAL if side**2 >= GOAL_FROM else 1.0,
        "lower_is_better": True,
        "unit": "ms",
        "patches": side**2,
        "output_difference": difference,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
    }


def slope(patches: list[int], times: list[float]) -> float:
    """Of log time over log patches by least squares, over the upper half of the sizes."""
    points = [(math.log(n), math.log(t)) for n, t in zip(patches, times, strict=True)]
    points = points[len(points) // 2 :] if len(points) > 3 else points
    line = statistics.linear_regression(*zip(*points, strict=True))
    return line.slope


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Times over patches, both axes logarithmic, with the fitted slopes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    patches = [int(str(row["patches"])) for row in rows]
    for key, name in (("peer", "naive"), ("ours", "cached keys and values")):
        times = [float(str(row[key])) for row in rows]
        axes.loglog(patches, times, "o-", label=f"{name}, slope {slope(patches, times):.2f}")
    axes.set_xticks(patches, [str(count) for count in patches], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("patches")
    axes.set_ylabel("ms an inverse")
    axes.set_title(
        f"TarFlow inverse: width {WIDTH}, {BLOCKS} x {LAYERS} layers, batch {BATCH}, "
        f"{rows[0]['device']}",
        fontsize=9,
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="up to 144 patches, under 45 s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--plot", type=Path, help="writes a picture of times over patches")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for side in SIDES[:4] if args.quick else SIDES:
        row = measure(side, 3, args.device)
        rows.append(row)
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['row']}: {row['ours']} ms, naive {row['peer']} ms, ratio {row['ratio']} "
                f"(goal {row['goal']}); outputs differ by {row['output_difference']:.1e}; "
                f"{row['device']}",
                flush=True,
            )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
