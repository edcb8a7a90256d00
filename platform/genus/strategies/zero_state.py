"""Weights, moments and averages under DeepSpeed's ZeRO, by the names and shapes of the networks.

ZeRO lays the float32 weights of many parameters end to end in flat tensors, of which each rank
holds a range; moments lie likewise. So a checkpoint of any strategy holds the same, and each rank
writes and reads its own ranges, without gathering anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genus.parts import Part
from genus.state import State, take_all
from genus.strategies.data_parallel import exchanged


@dataclass(frozen=True)
class Place:
    """Where a parameter's range of this rank lies in a flat tensor."""

    flat: Tensor
    offset: int
    """Of the range in ``flat``."""
    start: int
    """Of the range in the parameter, laid out row by row."""
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """The range in a tensor that lies as ``flat``."""
        return flat.detach()[self.offset : self.offset + self.count]


def places_of(engine: Any) -> dict[int, Place]:
    """Where DeepSpeed keeps the float32 weights of each parameter that it trains, by its id."""
    optimizer = engine.optimizer
    places = {}
    if engine.zero_optimization_stage() < 3:
        flats = optimizer.single_partition_of_fp32_groups
        for flat, members in zip(flats, optimizer.bit16_groups, strict=True):
            for parameter in members:
                mapping = parameter._hp_mapping
                place = Place(flat, 0, 0, 0)
                if mapping is not None:  # some of it is on this rank
                    there = mapping.get_hp_fragment_address()
                    here = mapping.lp_fragment_address.start
                    place = Place(flat, there.start, here, there.numel)
                places[id(parameter)] = place
        return places
    for members in optimizer.fp16_groups:
        for parameter in members:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = size * optimizer._get_param_partition_rank(parameter)
            count = max(0, min(size, shape_of(parameter).numel() - start))  # the last is padded
            flat = optimizer.fp32_partitioned_groups_flat[group]
            places[id(parameter)] = Place(flat, offset, start, count)
    return places


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole, which stage 3 does not keep in the parameter."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def refresh(engine: Any) -> None:
    """Have the networks compute with the float32 weights as they are now; all ranks call it."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        return
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:  # small ones, which every rank holds whole
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class ZeroLayout:
    """See ``Layout``. ``networks`` are what evaluations call, ``inner`` what is trained: the same
    objects but for stage 3, where ``networks`` are empty unless weights are lent."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        inner: Mapping[str, nn.Module],
        engines: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        """``engines``: of each network that is trained."""
        self._networks, self._inner, self._device = networks, inner, device
        self._engines = list({id(engine): engine for engine in engines.values()}.values())
        self._places: dict[str, tuple[Place, torch.Size]] = {}
        self.live: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        places: dict[int, Place] = {}
        for engine in self._engines:
            places |= places_of(engine)
        for name, network in inner.items():
            parameters = dict(network.named_parameters())
            for key, value in network.state_dict().items():
                path, parameter = f"{name}.{key}", parameters.get(key)
                place = places.get(id(parameter))
                if parameter is not None and place is not None:
                    self._places[path] = place, shape_of(parameter)
                    self.live[path] = place.of(place.flat)
                elif parameter is not None and hasattr(parameter, "ds_id"):
                    # fixed for good, and in pieces all the same: this is the whole of it
                    kept = networks[name].get_parameter(key).detach().to(device)
                    self.fixed[path] = self.live[path] = kept
                elif value.is_floating_point():
                    self.live[path] = value
        self._is_apart = any(networks[name] is not inner[name] for name in networks)
        if self._is_apart:
            self._empty()

    def stored(self, name: str, part: Tensor) -> Tensor | Part:
        if name not in self._places:
            return part
        place, shape = self._places[name]
        return Part.of_range(shape, place.start, part)

    def whole(self, name: str, part: Tensor) -> Tensor:
        if name not in self._places:
            return part
        place, shape = self._places[name]
        total = torch.zeros(shape.numel(), dtype=part.dtype, device=self._device)
        total[place.start : place.start + place.count] = part.to(self._device)
        dist.all_reduce(total)
        return total.view(shape)

    @contextmanager
    def lent(self, parts: Sequence[Tensor]) -> Iterator[None]:
        if self._is_apart:
            self._fill(dict(zip(self.live, parts, strict=True)))
            try:
                yield
            finally:
                self._empty()
            return
        with exchanged(list(self.live.values()), parts):
            for engine in self._engines:
                refresh(engine)
            yield
        # Not after an error: a gathering that the other ranks do not enter would hide it.
        for engine in self._engines:
            refresh(engine)

    @torch.no_grad()
    def _fill(self, parts: Mapping[str, Tensor]) -> None:
        for name, network in self._networks.items():
            stored = dict(network.named_parameters()) | dict(network.named_buffers())
            for key, tensor in stored.items():
                path = f"{name}.{key}"
                if path in parts:
                    tensor.data = self.whole(path, parts[path]).to(tensor.dtype, copy=True)
                elif key in (inner := self._inner[name].state_dict()):  # whole numbers
                    tensor.data = inner[key].clone()

    def _empty(self) -> None:
        for network in self._networks.values():
            for parameter in network.parameters():
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=self._device)
            for buffer in network.buffers():
                buffer.data = buffer.data.to(self._device)


@dataclass
class ZeroWeights:
    """A network's weights and buffers, as a checkpoint takes them."""

    layout: ZeroLayout
    name: str
    inner: nn.Module
    engine: Any

    def state_dict(self) -> State:
        state: State = {}
        for key, value in self.inner.state_dict().items():
            path = f"{self.name}.{key}"
            live = self.layout.live.get(path)
            state[key] = value if live is None else self.layout.stored(path, live)
        return state

    def load_state_dict(self, state: State) -> None:
        take_all(self.state_dict(), state)
        for path, value in self.layout.fixed.items():
            name, _, key = path.partition(".")
            if name == self.name:
                self._fix(self.inner.get_parameter(key), value)
        if self.engine is not None:
            refresh(self.engine)

    @staticmethod
    def _fix(parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)


@dataclass
class ZeroOptimizerState:
    """AdamW's moments under ZeRO, as ``OptimizerState`` names them."""

    inner: nn.Module
    engine: Any

    @property
    def kinds(self) -> str:
        """The optimizers' class names."""
        return "" if self.engine is None else type(self._base).__name__

    @property
    def _base(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return optimizer

    def state_dict(self) -> State:
        state: State = {"kinds": self.kinds}
        for name, (parameter, place) in self._trained.items():
            for key, value in self._base.state.get(place.flat, {}).items():
                is_step = value.shape != place.flat.shape
                state[f"{name}/{key}"] = value if is_step else self._part(parameter, place, value)
        return state

    def blank(self, key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | Part:
        """Memory for a moment that there is not yet: DeepSpeed makes them in its first step."""
        path, _, what = key.rpartition("/")
        if path not in self._trained or what not in ("exp_avg", "exp_avg_sq"):
            return torch.empty(shape, dtype=dtype)
        parameter, place = self._trained[path]
        values = self._base.state[place.flat]
        if what not in values:
            values[what] = torch.zeros_like(place.flat, requires_grad=False)
        return self._part(parameter, place, values[what])

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError or KeyError where another optimizer or network was saved."""
        if state["kinds"] != self.kinds:
            raise ValueError(f"it was saved by {state['kinds']}, this run has {self.kinds}")
        steps: dict[int, float] = {}
        for key, value in state.items():
            path, _, what = key.rpartition("/")
            if isinstance(value, Tensor):
                flat = self._trained[path][1].flat
                if steps.setdefault(id(flat), float(value)) != float(value):
                    raise ValueError(
                        "its parameters have taken different numbers of steps, and ZeRO keeps one"
                    )
                self._base.state[flat][what] = value.to(flat.device, copy=True)

    @cached_property
    def _trained(self) -> dict[str, tuple[nn.Parameter, Place]]:
        places = {} if self.engine is None else places_of(self.engine)
        parameters = self.inner.named_parameters()
        return {name: (p, places[id(p)]) for name, p in parameters if id(p) in places}

    @staticmethod
    def _part(parameter: nn.Parameter, place: Place, flat: Tensor) -> Part:
        return Part.of_range(shape_of(parameter), place.start, place.of(flat))
