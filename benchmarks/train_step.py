"""Train step of our U-Net and DiT against diffusers' of the same configuration and weights.

    python benchmarks/train_step.py [--json] [--quick] [--device cuda] [--bf16]

A step is forward, mean squared error, backward and a fused AdamW update. Both networks start from
the same weights, whose outputs are first compared in fp32 and must agree to 1e-5. Then steps of
ours and the peer's alternate in one process, and medians are printed: on a CPU with one thread,
in CPU time of the process, which a busy neighbour disturbs less than the wall clock; on CUDA in
wall time with synchronisation. diffusers' DiT repeats the embedding of noise level and class in
every block; a second row measures it with one shared embedding, as the paper has it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers_weights import dit_weights, tie_embeddings, unet_weights
from torch import Tensor, nn

from genus.networks.dit import DiT, DiTConfig
from genus.networks.unet import UNetConfig

GOAL = 1.1
CLASSES = 10
Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Case = tuple[str, nn.Module, str, nn.Module, Tensor]
"""Row, our network, the peer's name, the peer, a batch of inputs."""


def unet_case() -> Case:
    """A class-conditional DDPM U-Net for 3 x 32 x 32, 5.7 M parameters, attention at 16 and 8."""
    peer = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        norm_num_groups=16,
        num_class_embeds=CLASSES + 1,
    )
    config = UNetConfig(
        channels=64, mults=(1, 2, 2), blocks=2, attention=(16, 8), head_channels=64, style="ddpm"
    )
    ours = config.build(channels=3, resolution=32, classes=CLASSES)
    ours.load_state_dict(unet_weights(peer))
    return "unet train step", ours, "diffusers UNet2DModel", peer, torch.randn(16, 3, 32, 32)


def dit_cases() -> Iterator[Case]:
    """A class-conditional DiT of width 256, depth 6 on 4 x 32 x 32 latents, patch 2."""
    tied = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=4,
        num_layers=6,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    tie_embeddings(tied)
    config = DiTConfig(width=256, depth=6, heads=4, patch=2)
    ours = DiT(config, channels=4, resolution=32, classes=CLASSES, frequency_shift=1)
    ours.load_state_dict(dit_weights(tied))
    # As shipped: every block has its own copy, and its own optimizer state, of the embedding.
    shipped = copy.deepcopy(tied)
    for block in shipped.transformer_blocks:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    x = torch.randn(4, 4, 32, 32)
    yield "dit train step", ours, "diffusers DiTTransformer2DModel", shipped, x
    name = "diffusers DiTTransformer2DModel, embeddings shared"
    yield "dit train step, shared embeddings", copy.deepcopy(ours), name, tied, x


def stepper(
    network: nn.Module, call: Call, batch: tuple[Tensor, ...], bf16: bool
) -> Callable[[], None]:
    """One train step as a function without arguments."""
    x, noise, label = batch
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(x)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.mse_loss(call(x, noise, label).float(), target)
        loss.backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], cuda: bool) -> float:
    """Milliseconds of one step."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    step()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def measure(case: Case, rounds: int, device: str, bf16: bool) -> dict[str, object]:
    """Agreement first, then ``rounds`` alternating steps of each after one to warm up."""
    row, ours, peer_name, peer, x = case
    ours, peer, x = ours.to(device), peer.to(device), x.to(device)
    noise = torch.linspace(0, 999, len(x), device=device)
    label = torch.arange(len(x), device=device) % CLASSES
    batch = (x, noise, label)

    def peer_call(x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        sample: Tensor = peer(x, noise, class_labels=label).sample
        return sample

    with torch.no_grad():
        difference = (ours(*batch) - peer_call(*batch)).abs().max().item()
    assert difference < 1e-5, f"{row}: outputs differ by {difference}"

    steps = {
        "ours": stepper(ours, ours, batch, bf16),
        "peer": stepper(peer, peer_call, batch, bf16),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            times[name].append(timed(step, device == "cuda"))
    ours_ms, peer_ms = (statistics.median(times[name][1:]) for name in ("ours", "peer"))
    return {
        "row": row,
        "ours": round(ours_ms, 2),
        "peer": round(peer_ms, 2),
        "peer_name": peer_name,
        "ratio": round(peer_ms / ours_ms, 3),
        "goal": GOAL,
        "unit": "ms a step",
        "output_difference": difference,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "precision": "bf16 autocast" if bf16 else "fp32",
    }


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
    for case, rounds in [(unet_case(), 9), *((case, 12) for case in dit_cases())]:
        result = measure(case, rounds // 3 if args.quick else rounds, args.device, args.bf16)
        if args.json:
            print(json.dumps(result), flush=True)
        else:
            print(
                f"{result['row']}: {result['ours']} ms, {result['peer_name']} {result['peer']} ms, "
                f"ratio {result['ratio']} (goal {GOAL}); outputs differ by at most "
                f"{result['output_difference']:.1e}; {result['device']}, {result['precision']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
