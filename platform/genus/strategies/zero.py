"""DeepSpeed's ZeRO stages 1 to 3: moments, gradients and weights shared out among the ranks.

Rajbhandari et al. 2020. The engine reduces, clips and steps; what it is told is the recipe's
config, so that its rules are those of the other strategies: weights, gradients and buffers stay in
float32 and bf16 is autocast's; clipping is by ``train.clip`` over all networks of a phase;
micro-batches are the loop's, each weighted, with one exchange at the last (stages 2 and 3 exchange
at each); a step with a gradient that is not finite is skipped on all ranks.

Networks that train together are one engine's, whose forward is the loss: its hooks see a scalar.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from genus.data.batch import Batch
from genus.errors import ConfigError
from genus.objectives.phase import Loss, Phase, updates_of
from genus.parallel import World
from genus.state import Stateful
from genus.strategies.inner_gradient import are_kept
from genus.strategies.spread import Optim
from genus.strategies.zero_state import ZeroLayout, ZeroOptimizerState, ZeroWeights


class Zero:
    """One DeepSpeed engine for each set of networks that train together (see ``Spread``)."""

    layout: ZeroLayout

    def __init__(
        self,
        world: World,
        networks: Mapping[str, nn.Module],
        optim: Optim,
        clip: float,
        phases: Sequence[Phase],
    ) -> None:
        """``networks`` stay what evaluations call; with stage 3 they are empty between them.

        Raises ConfigError for phases that train sets of networks that overlap.
        """
        self.world, self.networks = world, networks
        self.stage = world.choice.stage
        self._trainable = {
            name: [p.requires_grad for p in network.parameters()]
            for name, network in networks.items()
        }
        self.optimizers: dict[str, list[torch.optim.Optimizer]] = {name: [] for name in networks}
        self._inner: dict[str, nn.Module] = {}
        self._engines: dict[tuple[str, ...], Any] = {}
        for names in together(phases, list(networks)):
            self._inner |= {name: self._to_device(networks[name]) for name in names}
            if any(phase.trains == names for phase in phases):
                self._engines[names] = self._engine(names, optim, clip, phases)
        self.prepared = self._inner
        self._by_network = {
            name: engine for names, engine in self._engines.items() for name in names
        }
        self.layout = ZeroLayout(networks, self._inner, self._by_network, world.device)

    def _to_device(self, network: nn.Module) -> nn.Module:
        prepare = self.world.accelerator.prepare_model
        if self.stage < 3:
            wrapped: nn.Module = prepare(network, evaluation_mode=True)
            return wrapped
        # Stage 3 leaves nothing in the networks that it trains: evaluations get the original, which
        # stays on the host, under the same autocast.
        inner = copy.deepcopy(network)
        if network._compiled_call_impl is not None:  # a copy is not
            inner.compile()
        prepare(network, device_placement=False, evaluation_mode=True)
        wrapped = prepare(inner, evaluation_mode=True)
        return wrapped

    def _engine(
        self, names: tuple[str, ...], optim: Optim, clip: float, phases: Sequence[Phase]
    ) -> Any:
        for name in names:
            for key, parameter in self._inner[name].named_parameters():
                if parameter.ndim == 0:  # DeepSpeed 0.19's own broadcast raises on them
                    raise ConfigError(
                        f"'{name}.{key}' is a number without dimensions, which DeepSpeed does not "
                        "take: make it a vector of one, or take DDP or FSDP2"
                    )
        deepspeed = _deepspeed(self.world.device)
        optimizers = [
            optimizer
            for name in names
            for optimizer in optim.build(self._inner[name], updates_of(phases, name))
        ]
        # one optimizer of all groups: an engine has one
        first = optimizers[0]
        for other in optimizers[1:]:
            first.param_groups += other.param_groups
        engine, *_ = deepspeed.initialize(
            model=_Together({name: self._inner[name] for name in names}),
            optimizer=first,
            config=self._settings(clip),
            dist_init_required=False,
        )
        assert engine.zero_optimization_stage() == self.stage, "DeepSpeed is not engaged"
        self.optimizers[names[0]] = [engine.optimizer.optimizer]
        return engine

    def _settings(self, clip: float) -> dict[str, Any]:
        """What DeepSpeed is told: the file's ZeRO settings, and our rules."""
        said = copy.deepcopy(dict(self.world.choice.deepspeed))
        said["zero_optimization"] = {**said.get("zero_optimization", {}), "stage": self.stage}
        for section in ("bf16", "train_batch_size", "optimizer", "scheduler", "fp16", "amp"):
            said.pop(section, None)
        return {
            **said,
            "train_micro_batch_size_per_gpu": 1,  # the loop's business; DeepSpeed only counts
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }

    # ---- a step ----------------------------------------------------------------------------------

    @contextmanager
    def only(self, trains: Sequence[str], last: bool) -> Iterator[None]:
        for name, inner in self._inner.items():
            flags = self._trainable[name]
            for parameter, is_trainable in zip(inner.parameters(), flags, strict=True):
                parameter.requires_grad_(is_trainable and name in trains)
        self._engine_of(trains).set_gradient_accumulation_boundary(last)
        yield

    def loss(self, phase: Phase, micro: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        engine = self._engine_of(phase.trains)
        others = {n: inner for n, inner in self._inner.items() if n not in engine.module.parts}
        loss, metrics = engine(phase.loss, others, micro)
        return loss, metrics

    def backward(self, loss: Tensor, trains: Sequence[str]) -> None:
        self._engine_of(trains).backward(loss, scale_wrt_gas=False)
        if self.stage == 3:
            for engine in self._engines.values():
                if are_kept(engine.module.parameters()):
                    engine.optimizer.parameter_offload.partition_all_parameters()

    def step(self, trains: Sequence[str], bad: Tensor) -> tuple[Tensor, Tensor]:
        engine = self._engine_of(trains)
        if self.world.max_(bad).item():
            _forget(engine)
            return torch.full_like(bad, float("nan")), bad
        engine.step()
        norm = engine.get_global_grad_norm()
        norm = torch.as_tensor(norm, dtype=torch.float64, device=bad.device)
        return norm, torch.maximum(bad, (~torch.isfinite(norm)).float())

    def _engine_of(self, trains: Sequence[str]) -> Any:
        return self._by_network[trains[0]]

    @property
    def states(self) -> dict[str, Stateful]:
        states: dict[str, Stateful] = {}
        for name, inner in self._inner.items():
            engine = self._by_network.get(name)
            states[f"networks.{name}"] = ZeroWeights(self.layout, name, inner, engine)
            states[f"optimizers.{name}"] = ZeroOptimizerState(inner, engine)
        return states


class _Together(nn.Module):
    """Networks that train together, and as their forward the loss that they train on."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(
        self, loss: Loss, others: Mapping[str, nn.Module], micro: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return loss({**others, **self.parts}, micro)


def together(phases: Sequence[Phase], networks: Sequence[str]) -> list[tuple[str, ...]]:
    """The networks in sets that train together, and those that never train, each alone.

    Raises ConfigError where phases train sets that overlap: the optimizer of one set would move
    weights by gradients that the phase does not have.
    """
    sets: list[tuple[str, ...]] = []
    for phase in phases:
        if phase.trains in sets:
            continue
        if any(set(phase.trains) & set(other) for other in sets):
            raise ConfigError(
                f"ZeRO needs phases that train the same networks or different ones; "
                f"'{phase.name}' trains {', '.join(phase.trains)} beside "
                f"{' and '.join(', '.join(s) for s in sets)}: take DDP or FSDP2"
            )
        sets.append(phase.trains)
    trained = {name for names in sets for name in names}
    return [*sets, *((name,) for name in networks if name not in trained)]


def _forget(engine: Any) -> None:
    """Drop the gradients of a step that is not taken, on all ranks."""
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    averaged = optimizer.averaged_gradients
    if engine.zero_optimization_stage() == 3:
        optimizer.averaged_gradients = {}
    else:
        for group in averaged:
            averaged[group] = None
            optimizer.all_grad_tensors[group] = None
        optimizer._release_preflattened_grad_buffers()
        optimizer.micro_step_id = -1
    if optimizer.cpu_offload if hasattr(optimizer, "cpu_offload") else optimizer.offload_optimizer:
        optimizer.reset_cpu_buffers()


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, without the kernels that it would compile for minutes on a CPU."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
    if not dist.is_initialized():  # one process, for the sake of offload
        backend = "gloo" if device.type == "cpu" else "nccl"
        store = HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return deepspeed
