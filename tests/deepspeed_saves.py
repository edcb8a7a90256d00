"""Run by test_checkpoint_commands.py on two ranks: DeepSpeed's checkpoints, and what is in them.

deepspeed_saves.py OUT RUN    OUT/CASE/ by engine.save_checkpoint, OUT/CASE.pt by DeepSpeed's
                              functions that gather; a case has RUN's network
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genus import config
from genus.data.manifest import DataInfo
from genus.provenance import load_recipe

STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "stage1": {"zero_optimization": {"stage": 1, "parameter_alignment": True}},
    "stage2": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "stage3": {"zero_optimization": {"stage": 3, "sub_group_size": 30}},
    "stage2-bf16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "run": {"zero_optimization": {"stage": 2}},
}


class Small(nn.Module):
    """Sizes that do not divide by two, a layer used twice, what is fixed, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 7)
        self.again = self.second
        self.fixed = nn.Parameter(torch.linspace(0.5, 1.5, 7), requires_grad=False)
        self.one = nn.Parameter(torch.ones(1))  # fewer numbers than ranks
        self.last = nn.Linear(7, 3)
        self.register_buffer("count", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.second(self.first(x).tanh()).tanh()) * self.fixed * self.one
        return self.last(x).square().mean()


class OfRun(nn.Module):
    """A run's network as part of another module; its loss is a sum over its weights."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        recipe = load_recipe(run)
        info = DataInfo.from_json(json.loads((run / "data.json").read_text()))
        networks, _ = recipe.build(config.load(recipe.Config, run / "config.json"), info)
        self.parts = nn.ModuleDict(networks)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.square().mean()
        return scale * torch.stack([(p - 0.1).square().sum() for p in self.parameters()]).sum()


def groups_of(network: nn.Module) -> list[dict[str, Any]]:
    """Matrices with decay, the others without."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def save(folder: Path, case: str, network: nn.Module) -> None:
    """Train and save under the case's engine."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        **CASES[case],
    }
    optimizer = torch.optim.AdamW(groups_of(network), lr=0.01)
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=settings, dist_init_required=False
    )
    assert engine.zero_optimization_stage() == settings["zero_optimization"]["stage"]
    for step in range(STEPS):
        torch.manual_seed(10 * step + dist.get_rank())
        engine.backward(engine(torch.randn(2, 5).to(next(network.parameters()).dtype)))
        engine.step()
    engine.save_checkpoint(str(folder / case))
    if engine.zero_optimization_stage() < 3:  # DeepSpeed 0.19 links only the first group's moments
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    found = {
        name: {
            "weights": safe_get_full_fp32_param(p),
            "exp_avg": safe_get_full_optimizer_state(p, "exp_avg"),
            "exp_avg_sq": safe_get_full_optimizer_state(p, "exp_avg_sq"),
        }
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{case}.pt")


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    folder, run = map(Path, sys.argv[1:])
    for case in CASES:
        torch.manual_seed(0)
        save(folder, case, OfRun(run) if case == "run" else Small())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
