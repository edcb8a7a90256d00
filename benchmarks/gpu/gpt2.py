"""GPT-2 124M in training on one GPU: tokens/s, model FLOPs utilisation, and packed documents.

    python benchmarks/gpu/gpt2.py [--json] [--quick] [--batch 32]
    python benchmarks/gpu/gpt2.py --device cpu --tiny       # every line but CUDA's, in seconds

T = 1024, vocabulary 50,304 (50,257 rounded up to a multiple of 128), weights in float32, forward
in bf16 by autocast, torch.compile, no dropout, a fused AdamW update. Three networks with the same
weights, ours, hand-written PyTorch (benchmarks/transformer.py) and transformers' GPT2LMHeadModel
with its sdpa attention, must first give the same logits and, compiled, the same loss. Then their
steps alternate in one process, several between two synchronisations, as training runs. Medians are
printed, with the quartiles of the rounds' ratios. The learning rate is 0: at the same cost the
networks stay the same. The batch is the largest power of two that fits all three before
compilation, which saves memory; where ours alone fits more, one more row says what it does then.

A training step is counted as 6 N + 12 L D T FLOPs a token (Chowdhery et al. 2022, appendix B): N
parameters without the table of positions; L blocks of width D; attention counted whole although
half of it is masked, and nothing that is computed a second time. A run's own "mfu"
(genus.meter.training_flops) is three times the products of one forward, attention whole, too: it
differs by 6 FLOPs for each bias and gain, which are in N and in no product (0.1 % here). Rows have
both. The peak is the maker's dense bf16 figure (genus.meter.PEAK_TFLOPS; of an H100 the SXM's).

The last row packs documents of 128 to 384 tokens into the same rows: FlexAttention, which skips
blocks that are masked whole but takes the place of the fused causal kernel, and builds its mask
anew in every step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from race import Contender, Timing, largest_batch, timings
from torch import Tensor, nn

from genus.meter import peak_tflops, training_flops

sys.path.insert(0, str(Path(__file__).parents[1]))
from transformer import (
    GOAL_MFU,
    GOAL_PLAIN,
    GPT2,
    Size,
    build,
    flops_per_token,
    our_loss,
    peer_loss,
    peer_of,
    plain_loss,
    plain_of,
)

TINY = Size(64, 2, 2, 64, 128, 0)
LARGEST_BATCH = 128
MEAN_DOCUMENTS = 4
"""A row's, on average."""
GOAL_DOCUMENTS = 0.9
Row = dict[str, object]


def contenders(size: Size, device: str) -> list[Contender]:
    """Ours, the hand-written one and transformers', whose logits have been compared."""
    ours = build(size)
    peer: Any = peer_of(ours, size)
    assert peer.config._attn_implementation == "sdpa"
    networks: dict[str, tuple[nn.Module, Any]] = {
        "ours": (ours, our_loss),
        "hand-written PyTorch": (plain_of(ours, size), plain_loss),
        "transformers GPT2LMHeadModel, sdpa": (peer, peer_loss),
    }
    tokens = torch.randint(size.vocabulary, (2, min(128, size.length)), device=device)
    found, logits = [], []
    for name, (network, loss) in networks.items():
        network.to(device).train()
        with torch.no_grad():
            output: Any = network(tokens)
        logits.append(output if isinstance(output, Tensor) else output.logits)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=True)
        found.append(Contender(name, network, loss, optimizer))
    for one, other in zip(found[1:], logits[1:], strict=True):
        difference = float((logits[0] - other).abs().max())
        assert difference < 1e-4, f"the logits of {one.name} differ by {difference}"
    return found


def packed(ours: Contender, document: Tensor) -> Contender:
    """Our network in training on packed documents (B, T)."""

    def loss(network: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        nats: Tensor = network(tokens, targets=targets, document=document).nats
        return nats.mean()

    return replace(ours, name="ours, documents packed", loss=loss)


def random_tokens(size: Size, device: str, batch: int) -> Tensor:
    """(B, T + 1)"""
    return torch.randint(size.vocabulary, (batch, size.length + 1), device=device)


def random_documents(size: Size, batch: int, device: str) -> Tensor:
    """(B, T): the numbers of documents of half to one and a half times T / MEAN_DOCUMENTS."""
    mean = size.length // MEAN_DOCUMENTS
    lengths = torch.randint(mean // 2, 3 * mean // 2 + 1, (batch, 2 * MEAN_DOCUMENTS + 1))
    place = torch.arange(size.length).expand(batch, -1).contiguous()
    return torch.searchsorted(lengths.cumsum(1), place, right=True).to(device)


def flops_of(size: Size) -> tuple[int, float]:
    """FLOPs of training on a token: by the formula, and as a run's own meter counts."""
    with torch.device("meta"):
        network = build(size)
        metered = training_flops(network, torch.zeros(1, size.length, dtype=torch.long))
    assert network.positions is not None
    counted = sum(p.numel() for p in network.parameters()) - network.positions.weight.numel()
    return flops_per_token(counted, size), metered / size.length


def row(name: str, unit: str, ours: float, peer: float, peer_name: str, goal: float) -> Row:
    """A row of the agreed form."""
    figures = {"row": name, "ours": round(ours, 3), "peer": round(peer, 3), "unit": unit}
    return {**figures, "peer_name": peer_name, "ratio": round(ours / peer, 4), "goal": goal}


def against(name: str, size: Size, batch: int, ours: Timing, peer: Timing, peer_name: str,
            goal: float) -> Row:  # fmt: skip
    """Tokens/s of one contender and another."""
    rate, peer_rate = (batch * size.length / statistics.median(t.seconds) for t in (ours, peer))
    ratios = [b / a for a, b in zip(ours.seconds, peer.seconds, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        **row(name, "tokens/s", rate, peer_rate, peer_name, goal),
        "ratio_quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
        "memory_gib": [round(one.memory / 2**30, 2) for one in (ours, peer)],
    }


def utilisation(name: str, size: Size, batch: int, timing: Timing, tflops: float) -> Row:
    """Model FLOP/s by the formula against the device's peak in TFLOP/s."""
    rate = batch * size.length / statistics.median(timing.seconds)
    formula, metered = flops_of(size)
    return {
        **row(name, "TFLOP/s", rate * formula / 1e12, tflops, "peak, bf16 dense", GOAL_MFU),
        "tokens_per_second": round(rate),
        "flops_per_token": formula,
        "flops_per_token_of_the_meter": round(metered),
        "ratio_by_the_meter": round(rate * metered / 1e12 / tflops, 4),
        "memory_gib": round(timing.memory / 2**30, 2),
    }


def measure(size: Size, device: str, limit: int, rounds: int, steps: int) -> list[Row]:
    """All rows; ``limit`` is the largest batch to try."""
    racing = contenders(size, device)
    ours = racing[0]
    tokens_of = partial(random_tokens, size, device)
    most = [largest_batch(one, tokens_of, limit) for one in racing]
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as is usual; autocast leaves few products
        for one in racing:
            one.network.compile(dynamic=False)
    batch, own = min(most), most[0]
    racing.append(packed(ours, random_documents(size, batch, device)))
    found = timings(racing, tokens_of(batch), rounds, steps, same=3)
    # None where unknown (a CPU's): no utilisation then
    peak = peak_tflops(torch.device(device))
    name = f"GPT-2, {size}, bf16, batch {batch}"
    rows = [
        against(f"{name}: train step", size, batch, found[0], timing, one.name, GOAL_PLAIN)
        for one, timing in zip(racing[1:3], found[1:3], strict=True)
    ]
    if peak:
        rows.append(utilisation(f"{name}: model FLOPs utilisation", size, batch, found[0], peak))
    title = f"{name}: train step on about {MEAN_DOCUMENTS} documents a row"
    rows.append(against(title, size, batch, found[3], found[0], "ours, rows whole", GOAL_DOCUMENTS))
    if own > batch and peak:
        (alone,) = timings([ours], tokens_of(own), rounds, steps, same=1)
        title = f"GPT-2, {size}, bf16, batch {own}: model FLOPs utilisation"
        rows.append(utilisation(title, size, own, alone, peak))
    about = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "largest_batches": dict(zip([one.name for one in racing], most, strict=False)),
    }
    return [{**one, **about} for one in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--batch", type=int, default=LARGEST_BATCH, help="the largest to try")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to check the program")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here (--device cpu --tiny checks the program)")
    if args.device == "cpu" and not args.tiny:
        parser.error("a CPU takes minutes for a step of GPT-2: give --tiny, too")
    size, limit = (TINY, min(4, args.batch)) if args.tiny else (GPT2, args.batch)
    rounds, steps = (3, 2) if args.quick or args.tiny else (11, 10)
    for result in measure(size, args.device, limit, rounds, steps):
        if args.json:
            print(json.dumps(result), flush=True)
            continue
        print(
            f"{result['row']}: {result['ours']} {result['unit']}, {result['peer_name']} "
            f"{result['peer']}, ratio {result['ratio']} (goal {result['goal']}); "
            f"{result['device']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
