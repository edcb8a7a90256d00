"""Cached passes give the full pass's logits: equal and unequal prompts, reordered, compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genus.errors import ConfigError, DataError
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.decoder import Transformer, TransformerConfig

V, LENGTH, CLASSES = 9, 12, 3
CONFIGS = {
    "gpt2": TransformerConfig(width=8, depth=2, heads=2, positions="learned"),
    "llama": TransformerConfig(
        width=16, depth=2, heads=4, kv_heads=2, mlp="swiglu", mlp_width=24, norm="rms",
        tied=False, bias=False,
    ),
    "qk": TransformerConfig(width=12, depth=2, heads=3, kv_heads=1, qk_norm=True),
}  # fmt: skip
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
either_kind = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])


def built(config: TransformerConfig, classes: int = 0) -> Transformer:
    torch.manual_seed(0)
    network = config.build(vocabulary=V, length=LENGTH, classes=classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double().eval()


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(V, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def close(actual: Tensor, expected: Tensor) -> None:
    bound = 1e-10 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


@torch.no_grad()
def follow(network: Transformer, x: Tensor, cache: Cache, parts: list[int]) -> Tensor:
    """Logits of x fed in parts, side by side."""
    return torch.cat([network(part, cache=cache) for part in x.split(parts, 1)], 1)


@every_config
@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_parts_as_in_one(config: TransformerConfig, static: bool, dtype: torch.dtype) -> None:
    network = built(config).to(dtype)
    for parts in ([5, 1, 1, 1, 1, 1, 1, 1], [1] * LENGTH, [3, 4, 1, 4]):
        cached = follow(network, tokens(), Cache(LENGTH, static=static), parts)
        close(cached, network(tokens()))


@every_config
@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prompts_of_unequal_length(
    config: TransformerConfig, static: bool, dtype: torch.dtype
) -> None:
    """Each row's logits are those of its own tokens alone, without the padding."""
    network = built(config).to(dtype)
    x, lengths = tokens(), torch.tensor([2, 5, 1])
    rows = torch.arange(3)
    full = network(x)
    cache = Cache(LENGTH, static=static)
    with torch.no_grad():
        padded = x[:, :5].where(torch.arange(5) < lengths[:, None], V - 1)
        last = network(padded, cache=cache, lengths=lengths, last_only=True)
        close(last[:, 0], full[rows, lengths - 1])
        for step in range(4):
            new = x[rows, lengths + step][:, None]
            close(network(new, cache=cache)[:, 0], full[rows, lengths + step])


@either_kind
def test_unequal_prompts_continue_by_unequal_parts(static: bool) -> None:
    network = built(CONFIGS["llama"])
    x, first, second = tokens(), torch.tensor([2, 5, 1]), torch.tensor([3, 1, 2])
    rows = torch.arange(3)
    cache = Cache(LENGTH, static=static)
    with torch.no_grad():
        network(x[:, :5], cache=cache, lengths=first)
        at = first[:, None] + torch.arange(3)
        new = network(x[rows[:, None], at], cache=cache, lengths=second, last_only=True)
        full = network(x)
        close(new[:, 0], full[rows, first + second - 1])
        after = first + second
        close(network(x[rows, after][:, None], cache=cache)[:, 0], full[rows, after])


@every_config
@either_kind
@pytest.mark.parametrize("unequal", [False, True])
def test_reorder(config: TransformerConfig, static: bool, unequal: bool) -> None:
    """Rows swapped, doubled and dropped continue as what they have become."""
    network = built(config)
    x = tokens()
    lengths = torch.tensor([2, 4, 3]) if unequal else None
    cache = Cache(LENGTH, static=static)
    with torch.no_grad():
        network(x[:, :4], cache=cache, lengths=lengths)
        for order in ([2, 2, 0], [0, 0, 1, 1, 2, 2], [5, 0]):
            cache.reorder(torch.tensor(order))
            x = x[order]
            lengths = None if lengths is None else lengths[order]
            rows = torch.arange(len(x))
            at = torch.full((len(x),), 4) if lengths is None else lengths
            # the step that is checked, taken back after it
            state = (cache.used, None if cache.lengths is None else cache.lengths.clone())
            close(network(x[rows, at][:, None], cache=cache)[:, 0], network(x)[rows, at])
            cache.used, cache.lengths = state


@either_kind
def test_reorder_in_place_keeps_the_memory(static: bool) -> None:
    network = built(CONFIGS["llama"])
    cache = Cache(LENGTH, static=static)
    with torch.no_grad():
        network(tokens(), cache=cache)
    before = [t.data_ptr() for t in (*cache.keys, *cache.values)]
    cache.reorder(torch.tensor([1, 0, 2]))
    assert [t.data_ptr() for t in (*cache.keys, *cache.values)] == before


@every_config
@either_kind
def test_behind_a_class(config: TransformerConfig, static: bool) -> None:
    network = built(config, classes=CLASSES)
    x, label = tokens()[:, :6], torch.tensor([0, 2, CLASSES])
    full = network(x, label=label)
    cache = Cache(LENGTH, static=static)
    with torch.no_grad():
        close(network(x[:, :0], label=label, cache=cache), full[:, :1])
        close(follow(network, x, cache, [2, 1, 3]), full[:, 1:])
        unequal = Cache(LENGTH, static=static)
        lengths = torch.tensor([1, 3, 0])
        last = network(x[:, :3], label=label, cache=unequal, lengths=lengths, last_only=True)
        close(last[:, 0], full[torch.arange(3), lengths])
    with pytest.raises(ConfigError, match="holds the label already"):
        network(x[:, :1], label=label, cache=cache)


def test_a_static_step_compiles_once() -> None:
    """One graph serves every position: nothing that changes is a Python number."""
    network = built(CONFIGS["llama"])
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = tokens()
    cache = Cache(LENGTH, static=True)
    step = torch.compile(network, backend=count, fullgraph=True, dynamic=False)
    with torch.no_grad():
        full = network(x)
        network(x[:, :3], cache=cache, lengths=torch.tensor([3, 3, 3]))
        for at in range(3, LENGTH):
            close(step(x[:, at : at + 1], cache=cache)[:, 0], full[:, at])
    assert len(graphs) == 1


def test_under_autocast_the_cache_is_in_its_precision() -> None:
    network = built(CONFIGS["llama"]).float()
    cache = Cache(LENGTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cached = follow(network, tokens(), cache, [5] + [1] * 7)
        full = network(tokens())
    assert cache.keys[0].dtype == torch.bfloat16
    assert (cached - full).norm() / full.norm() < 0.02


def test_a_full_cache_says_so() -> None:
    network = built(CONFIGS["llama"])
    cache = Cache(4)
    network(tokens()[:, :4], cache=cache)
    with pytest.raises(DataError, match="holds 4 positions, 4 are used and 1 more"):
        network(tokens()[:, :1], cache=cache)
    learned = built(CONFIGS["gpt2"])
    long = Cache(LENGTH + 1, static=True)
    with pytest.raises(DataError, match="13 positions, but it has learned 12"):
        learned(tokens(), cache=long)
    with pytest.raises(ConfigError, match="packed documents"):
        network(tokens(), cache=Cache(4), document=tokens())


def test_training_mode_and_gradients_leave_the_cache_alone() -> None:
    """What is written carries no gradient, and a prompt's own logits do."""
    network = built(replace(CONFIGS["llama"]))
    cache = Cache(LENGTH)
    network(tokens(), cache=cache).sum().backward()
    assert not cache.keys[0].requires_grad
    assert all(parameter.grad is not None for parameter in network.parameters())
