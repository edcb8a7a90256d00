"""Training and generation against transformers' GPT-2 and a hand-written network.

    python benchmarks/transformer.py [--json] [--quick] [--device cuda]

All networks have the same configuration (GPT-2's: learned positions, LayerNorm, tanh GELU, biases,
tied embeddings, no dropout) and the same weights, and what they compute is compared before any
timing: logits and loss to 1e-4, generated tokens exactly. A training step is forward,
cross-entropy, backward and a fused AdamW update. The hand-written network is the usual short
PyTorch: one product for queries, keys and values, scaled_dot_product_attention, F.cross_entropy of
all logits. Generation is greedy with a cache, 32 tokens of prompt, on to the model's length.

Calls of ours and the peer's alternate in one process, and medians are printed, with the quartiles
of the rounds' ratios: on a CPU with one thread, in CPU time of the process, which a busy neighbour
disturbs less than the wall clock; on CUDA in wall time with synchronisation.

With --device cuda GPT-2 124M trains at 1,024 tokens in bf16, compiled, and model FLOPs utilisation
is worked out: a token costs 6 N + 12 depth width T (Chowdhery et al. 2022, appendix B; N parameters
without the table of positions, attention counted whole although half is masked), against 989
TFLOP/s, an H100's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from genus.draws import Draws
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.networks.transformer.huggingface import to_gpt2, to_gpt2_config
from genus.samplers.tokens import generate

GOAL_STEP, GOAL_PLAIN, GOAL_GENERATION, GOAL_MFU = 1.2, 1.0, 2.0, 0.45
H100_FLOPS = 989e12
PROMPT = 32
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """One configuration; ``batch`` is the training step's."""

    width: int
    depth: int
    heads: int
    length: int
    vocabulary: int
    batch: int

    def __str__(self) -> str:
        return f"width {self.width}, depth {self.depth}, T {self.length}"


SIZES = [Size(128, 4, 4, 128, 65, 16), Size(384, 6, 6, 256, 65, 4)]
GPT2 = Size(768, 12, 12, 1024, 50304, 16)
"""124M; the vocabulary rounded up to a multiple of 128, as is usual for speed."""


class PlainBlock(nn.Module):
    """What one writes by hand: attention and MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        heads = self.qkv(self.before_attention(x)).split(D, dim=2)
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(y.transpose(1, 2).reshape(B, T, D))
        hidden = F.gelu(self.up(self.before_mlp(x)), approximate="tanh")
        return x + self.down(hidden)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """The hand-written network: logits (B, T, V), or their mean cross-entropy."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(PlainBlock(size.width, size.heads) for _ in range(size.depth))
        self.last = nn.LayerNorm(size.width)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.last(x), self.tokens.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def plain_of(ours: Transformer, size: Size) -> Plain:
    """The hand-written network with our weights, which lie in the same order."""
    plain = Plain(size)
    names = {
        "embedding": "tokens", "positions": "places", "norm0": "before_attention", "norm1":
        "before_mlp", "attention.qkv": "qkv", "attention.out": "mix", "mlp.up": "up",
        "mlp.down": "down",
    }  # fmt: skip
    state = {}
    for name, value in ours.state_dict().items():
        for mine, theirs in names.items():
            name = name.replace(mine, theirs)
        state["last" + name[4:] if name.startswith("norm.") else name] = value
    plain.load_state_dict(state)
    return plain


def build(size: Size) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        width=size.width, depth=size.depth, heads=size.heads, positions="learned"
    )
    return config.build(vocabulary=size.vocabulary, length=size.length)


def peer_of(ours: Transformer, size: Size) -> GPT2LMHeadModel:
    """transformers' GPT-2 with our weights."""
    config = TransformerConfig(**vars(ours.config))
    settings = to_gpt2_config(config, size.vocabulary, size.length)
    peer = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=None, eos_token_id=None))
    peer.load_state_dict(to_gpt2(ours.state_dict(), config))
    return peer


def our_loss(network: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = network(tokens, targets=targets).nats.mean()
    return loss


def peer_loss(network: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    # shift_labels: the targets are shifted already
    output = network(tokens, labels=targets, shift_labels=targets, use_cache=False)
    loss: Tensor = output.loss
    return loss


def plain_loss(network: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = network(tokens, targets)
    return loss


def stepper(
    network: nn.Module,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    tokens: Tensor,
    targets: Tensor,
    bf16: bool = False,
) -> Call:
    """One training step as a function without arguments; it returns the loss."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(network, tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def timed(call: Call, cuda: bool) -> float:
    """Seconds of one call."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def alternate(ours: Call, peer: Call, rounds: int, cuda: bool) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the quartiles of the ratios peer / ours, after a warm-up."""
    times = []
    for round in range(rounds + 1):
        # who goes first changes: the second finds the caches as the first left them
        order = (ours, peer) if round % 2 else (peer, ours)
        pair = {call: timed(call, cuda) for call in order}
        times.append((pair[ours], pair[peer]))
    our_times, peer_times = zip(*times[1:], strict=True)
    quarters = statistics.quantiles([b / a for a, b in times[1:]], n=4)
    return statistics.median(our_times), statistics.median(peer_times), quarters


def row(
    name: str, unit: str, figures: tuple[float, float], peer_name: str, ratio: float, goal: float,
    quarters: list[float], device: str,
) -> dict[str, object]:  # fmt: skip
    return {
        "row": name,
        "ours": round(figures[0], 2),
        "peer": round(figures[1], 2),
        "peer_name": peer_name,
        "ratio": round(ratio, 3),
        "ratio_quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
        "goal": goal,
        "unit": unit,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
    }


def training_rows(size: Size, rounds: int, device: str) -> list[dict[str, object]]:
    """A step of ours against transformers' and against the hand-written network's."""
    rows = []
    tokens = torch.randint(size.vocabulary, (size.batch, size.length + 1), device=device)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    for peer_name, goal, loss_of in (
        ("transformers GPT2LMHeadModel", GOAL_STEP, peer_loss),
        ("hand-written PyTorch", GOAL_PLAIN, plain_loss),
    ):
        ours = build(size)
        peer: nn.Module = peer_of(ours, size) if loss_of is peer_loss else plain_of(ours, size)
        ours, peer = ours.to(device), peer.to(device)
        with torch.no_grad():
            theirs = peer(batch[0])
            theirs = theirs if isinstance(theirs, Tensor) else theirs.logits
            difference = (ours(batch[0]) - theirs).abs().max().item()
        assert difference < 1e-4, f"logits of {peer_name} differ by {difference}"
        steps = stepper(ours, our_loss, *batch), stepper(peer, loss_of, *batch)
        # the second step's loss has seen both backward passes
        for _ in range(2):
            losses = [float(step()) for step in steps]
            assert abs(losses[0] - losses[1]) < 1e-4, f"losses of {peer_name}: {losses}"
        ours_s, peer_s, quarters = alternate(*steps, rounds, device == "cuda")
        name = f"train step, {size}, batch {size.batch}"
        figures = 1000 * ours_s, 1000 * peer_s
        ratio = peer_s / ours_s
        rows.append(row(name, "ms", figures, peer_name, ratio, goal, quarters, device))
    return rows


def generation_row(
    size: Size, batch: int, count: int, rounds: int, device: str
) -> dict[str, object]:
    """Greedy continuation of ``batch`` prompts by ``count`` tokens."""
    network = build(size)
    # Away from its initial state, where the last token repeats and the best two nearly tie.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    peer: Any = peer_of(network, size)
    peer.to(device).eval()
    network.to(device).eval()
    prompts = torch.randint(size.vocabulary, (batch, PROMPT), device=device)
    mask = torch.ones_like(prompts)
    draws = Draws.of(range(batch), device=device)

    def ours() -> Tensor:
        return generate(network, prompts, None, count, draws, temperature=0)

    def theirs() -> Tensor:
        tokens: Tensor = peer.generate(
            prompts, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return tokens[:, PROMPT:]

    assert ours().equal(theirs()), "the generated tokens differ"
    ours_s, peer_s, quarters = alternate(ours, theirs, rounds, device == "cuda")
    rates = batch * count / ours_s, batch * count / peer_s
    name = f"generation, {size}, batch {batch}, {count} tokens"
    ratio, peer_name = rates[0] / rates[1], "transformers generate"
    return row(name, "tokens/s", rates, peer_name, ratio, GOAL_GENERATION, quarters, device)


def flops_per_token(parameters: int, size: Size) -> int:
    """Of a training step: 6 a parameter, and attention's two products, forward and backward."""
    return 6 * parameters + 12 * size.depth * size.width * size.length


def utilisation_rows(size: Size, rounds: int, device: str) -> list[dict[str, object]]:
    """A compiled bf16 step of ours against the hand-written network's, and FLOP/s by formula."""
    ours = build(size)
    assert ours.positions is not None
    counted = sum(p.numel() for p in ours.parameters()) - ours.positions.weight.numel()
    plain = plain_of(ours, size)
    tokens = torch.randint(size.vocabulary, (size.batch, size.length + 1), device=device)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    cuda = device == "cuda"
    ours.to(device)
    plain.to(device)
    if cuda:
        ours.compile()
        plain.compile()
    steps = (
        stepper(ours, our_loss, *batch, bf16=True),
        stepper(plain, plain_loss, *batch, bf16=True),
    )
    losses = [float(step()) for step in steps]
    assert abs(losses[0] - losses[1]) < 2e-2, f"losses differ: {losses}"
    ours_s, peer_s, quarters = alternate(*steps, rounds, cuda)
    count = size.batch * size.length
    name = f"GPT-2 {counted / 1e6:.0f}M, {size}, batch {size.batch}, bf16, compiled"
    rates = count / ours_s, count / peer_s
    plain_row = row(
        f"{name}: train step", "tokens/s", rates, "hand-written PyTorch", rates[0] / rates[1],
        GOAL_PLAIN, quarters, device,
    )  # fmt: skip
    flops = flops_per_token(counted, size) * count / ours_s
    share = flops / H100_FLOPS
    mfu_row = row(
        f"{name}: model FLOPs utilisation", "TFLOP/s", (flops / 1e12, H100_FLOPS / 1e12),
        "H100 peak, bf16 dense", share, GOAL_MFU, [share * q * ours_s / peer_s for q in quarters],
        device,
    )  # fmt: skip
    return [plain_row, mfu_row]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 45 s on a CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    def show(result: dict[str, object]) -> None:
        if args.json:
            print(json.dumps(result), flush=True)
            return
        print(
            f"{result['row']}: {result['ours']} {result['unit']}, {result['peer_name']} "
            f"{result['peer']}, ratio {result['ratio']} (quartiles {result['ratio_quartiles']}, "
            f"goal {result['goal']}); {result['device']}",
            flush=True,
        )

    for size in SIZES:
        for result in training_rows(size, 3 if args.quick else 11, args.device):
            show(result)
        count = 24 if args.quick else size.length - PROMPT
        for batch in (1, 16):
            show(generation_row(size, batch, count, 3 if args.quick else 7, args.device))
    if args.device == "cuda":
        for result in utilisation_rows(GPT2, 7 if args.quick else 21, args.device):
            show(result)


if __name__ == "__main__":
    main()
