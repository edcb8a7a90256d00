"""Modulated convolution, forward and backward, against the straightforward loop over the samples.

    python benchmarks/modulated_convolution.py [--json] [--quick] [--device cuda] [--bf16]

The loop makes each sample's weights (modulated, demodulated), convolves that sample, and stacks. It
is compared with both ways of ours: channels scaled around one convolution with the shared weights
(the default), and each sample's own weights in one grouped convolution. Outputs and gradients must
agree first. Then calls of the three alternate in one process, each starting with another one; the
medians are printed, and the quartiles of the rounds' ratios: on a CPU with one thread, in CPU time
of the process; on CUDA in wall time with synchronisation. Sizes are layers of StyleGAN2 at 64
pixels and, on CUDA, at 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from genus.networks.filtering import low_pass
from genus.networks.gan.layers import channels_last
from genus.networks.gan.modulated import EPSILON, modulated_conv

GOAL = 1.0
Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x (B, I, H, W), weight (O, I, 3, 3), style (B, I) -> (B, O, H', W')."""


@dataclass(frozen=True)
class Size:
    """A layer."""

    batch: int
    inputs: int
    outputs: int
    resolution: int
    """Of its input."""
    up: bool = False

    def __str__(self) -> str:
        kind = f"{self.inputs} -> {self.outputs} at {self.resolution} px"
        return f"{kind}{', up' if self.up else ''}, batch {self.batch}"

    def inputs_on(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """x as the networks hand it on, weight and style."""
        x = torch.randn(self.batch, self.inputs, self.resolution, self.resolution, device=device)
        weight = torch.randn(self.outputs, self.inputs, 3, 3, device=device)
        style = 1 + 0.5 * torch.randn(self.batch, self.inputs, device=device)
        return tuple(t.requires_grad_() for t in (channels_last(x), weight, style))  # type: ignore[return-value]


SIZES = [
    Size(8, 512, 512, 4),
    Size(8, 512, 512, 8),
    Size(8, 256, 256, 16),
    Size(8, 128, 128, 32),
    Size(8, 64, 64, 64),
    Size(8, 128, 64, 32, up=True),
    Size(1, 128, 128, 32),
]
LARGE = [Size(64, 512, 512, 32), Size(64, 128, 128, 128), Size(64, 64, 64, 256)]
"""On CUDA only."""
SMALL = [Size(4, 64, 64, 8), Size(4, 32, 32, 16), Size(4, 32, 16, 16, up=True)]


def by_loop(x: Tensor, weight: Tensor, style: Tensor, *, up: bool) -> Tensor:
    """As one writes it down from the paper's equations 1 and 3."""
    made = []
    for row, s in zip(x, style, strict=True):
        own = weight * s[None, :, None, None]
        own = own * (own.square().sum(dim=(1, 2, 3), keepdim=True) + EPSILON).rsqrt()
        if up:
            wide = F.conv_transpose2d(row[None], 4 * own.transpose(0, 1), stride=2)
            made.append(low_pass(wide, padding=(1, 1)))
        else:
            made.append(F.conv2d(row[None], own, padding=1))
    return torch.cat(made)


def forward_and_backward(
    convolve: Convolve, inputs: tuple[Tensor, Tensor, Tensor], towards: Tensor, bf16: bool
) -> tuple[Tensor, ...]:
    """The output and the gradients of x, weight and style."""
    with torch.autocast(towards.device.type, torch.bfloat16, enabled=bf16):
        y = convolve(*inputs)
    return y, *torch.autograd.grad(y, inputs, towards.to(y.dtype))


def milliseconds(call: Callable[[], object], cuda: bool, repeats: int) -> float:
    """Of one call."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    for _ in range(repeats):
        call()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (clock() - start) / repeats


def measure(size: Size, rounds: int, device: str, bf16: bool) -> Iterator[dict[str, object]]:
    """A row for each of our ways."""
    inputs, cuda = size.inputs_on(device), device == "cuda"
    ways: dict[str, Convolve] = {
        "loop": partial(by_loop, up=size.up),
        "scaled": partial(modulated_conv, up=size.up),
        "grouped": partial(modulated_conv, up=size.up, grouped=True),
    }
    towards = torch.randn_like(ways["loop"](*inputs))
    expected = forward_and_backward(ways["loop"], inputs, towards, False)
    for name in ("scaled", "grouped"):
        found = forward_and_backward(ways[name], inputs, towards, False)
        for ours, other in zip(found, expected, strict=True):
            difference = ((ours - other).norm() / other.norm()).item()
            assert difference < 1e-5, f"{size}, {name}: differs by {difference}"

    calls = {
        name: partial(forward_and_backward, way, inputs, towards, bf16)
        for name, way in ways.items()
    }
    for call in calls.values():
        milliseconds(call, cuda, 1)
    repeats = max(1, int(100 / milliseconds(calls["loop"], cuda, 1)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            times[name].append(milliseconds(calls[name], cuda, repeats))
        order = order[1:] + order[:1]
    for name in ("scaled", "grouped"):
        ratios = [b / a for a, b in zip(times[name], times["loop"], strict=True)]
        mine, loop = statistics.median(times[name]), statistics.median(times["loop"])
        yield {
            "row": f"modulated convolution, {name}, {size}",
            "ours": round(mine, 3),
            "peer": round(loop, 3),
            "peer_name": "loop over samples",
            "ratio": round(loop / mine, 3),
            "goal": GOAL,
            "unit": "ms forward and backward",
            "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "device": torch.cuda.get_device_name() if cuda else "cpu, 1 thread",
            "precision": "bf16 autocast" if bf16 else "fp32",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    large = LARGE if args.device == "cuda" else []
    for size in SMALL if args.quick else [*SIZES, *large]:
        for row in measure(size, 3 if args.quick else 9, args.device, args.bf16):
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['row']}: {row['ours']} ms, {row['peer_name']} {row['peer']} ms, ratio "
                    f"{row['ratio']} {row['ratio_quartiles']}; {row['device']}, {row['precision']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
