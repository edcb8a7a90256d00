"""Parameter groups, AdamW and Muon, and their state."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from genus.optim.build import AdamWConfig, MuonConfig, OptimizerState, set_learning_rates

ADAMW = AdamWConfig(lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
MUON = MuonConfig(lr=0.05, momentum=0.9, weight_decay=0.1, adamw_lr=1e-2)
both = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


class Small(nn.Module):
    """One parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.time = nn.Linear(4, 8)
        self.out = nn.Linear(8, 2)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.conv(self.norm(self.conv_in(x)).relu())
        h = h.mean((2, 3)) + self.time(self.embed(label))
        return self.out(h.relu()) * self.temperature


def network(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def gradients(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def train(net: Small, optimizers: Sequence[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        gradients(net, step)
        for optimizer in optimizers:
            optimizer.step()


def names(net: nn.Module, parameters: Sequence[Tensor]) -> set[str]:
    known = {id(p): name for name, p in net.named_parameters()}
    return {known[id(p)] for p in parameters}


# ---- groups --------------------------------------------------------------------------------------


def test_vectors_and_embeddings_do_not_decay() -> None:
    net = network()
    (optimizer,) = ADAMW.build(net)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    matrices = {"conv_in.weight", "conv.weight", "time.weight", "out.weight"}
    assert names(net, decayed["params"]) == matrices
    assert names(net, others["params"]) == set(dict(net.named_parameters())) - matrices


def test_muon_takes_the_inner_matrices() -> None:
    net = network()
    muon, adamw = MUON.build(net)
    inner = {"conv.weight", "time.weight"}
    assert names(net, muon.param_groups[0]["params"]) == inner
    rest = [p for group in adamw.param_groups for p in group["params"]]
    assert names(net, rest) == set(dict(net.named_parameters())) - inner
    assert len(rest) == len({id(p) for p in rest})


@both
def test_networks_without_some_kind_of_parameter(config: AdamWConfig | MuonConfig) -> None:
    assert config.build(nn.ReLU()) == []
    two = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert len(config.build(two)) == 1  # both are ends: nothing is left for Muon
    assert len(config.build(nn.LayerNorm(3))) == 1
    three = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    covered = [p for o in config.build(three) for g in o.param_groups for p in g["params"]]
    assert len(covered) == 3


@both
def test_schedule_scales_every_group(config: AdamWConfig | MuonConfig) -> None:
    optimizers = {"net": config.build(network())}
    for factor in (0.25, 0.5):  # of the peak, not of the last value
        set_learning_rates(optimizers, factor)
        for optimizer in optimizers["net"]:
            peak = MUON.lr if "Muon" in type(optimizer).__name__ else ADAMW.lr
            assert [g["lr"] for g in optimizer.param_groups] == [peak * factor] * len(
                optimizer.param_groups
            )


# ---- steps ---------------------------------------------------------------------------------------


def test_adamw_equals_a_hand_written_step() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    net = network().double()
    (optimizer,) = ADAMW.build(net)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in range(1, 4):
        generator = torch.Generator().manual_seed(t)
        for name, p in net.named_parameters():
            p.grad = g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            decay = ADAMW.weight_decay if p.ndim >= 2 and name != "embed.weight" else 0.0
            m[name] = ADAMW.betas[0] * m[name] + (1 - ADAMW.betas[0]) * g
            v[name] = ADAMW.betas[1] * v[name] + (1 - ADAMW.betas[1]) * g**2
            m_hat = m[name] / (1 - ADAMW.betas[0] ** t)
            v_hat = v[name] / (1 - ADAMW.betas[1] ** t)
            update = m_hat / (v_hat.sqrt() + ADAMW.eps) + decay * expected[name]
            expected[name] = expected[name] - ADAMW.lr * update
        optimizer.step()
    for name, p in net.named_parameters():
        assert torch.allclose(p, expected[name], rtol=0, atol=1e-14), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_equals_torchs_on_matrices(layout: torch.memory_format) -> None:
    net = network()
    net.to(memory_format=layout)  # type: ignore[call-overload]
    muon, _ = MUON.build(net)
    wanted = ("conv.weight", "time.weight")
    plain = {
        n: p.detach().flatten(1).clone() for n, p in network().named_parameters() if n in wanted
    }
    reference = torch.optim.Muon(
        list(plain.values()), lr=0.05, momentum=0.9, weight_decay=0.1, adjust_lr_fn="original"
    )
    for step in range(4):
        set_learning_rates({"net": [muon]}, 1 - step / 4)
        reference.param_groups[0]["lr"] = 0.05 * (1 - step / 4)
        gradients(net, step)
        for name, p in net.named_parameters():
            if name in plain and p.grad is not None:
                p.grad = p.grad.contiguous(
                    memory_format=layout if p.ndim == 4 else torch.contiguous_format
                )
                plain[name].grad = p.grad.flatten(1)
        muon.step()
        reference.step()
    for name, p in net.named_parameters():
        if name in plain:
            assert torch.equal(p.flatten(1), plain[name]), name
            if p.ndim == 4:
                assert p.is_contiguous(memory_format=layout)
                assert not torch.equal(p, dict(network().named_parameters())[name])


def test_muon_leaves_a_matrix_without_gradient_alone() -> None:
    net = network()
    muon, _ = MUON.build(net)
    gradients(net, 0)
    net.time.weight.grad = None
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    muon.step()
    assert torch.equal(net.time.weight, before["time.weight"])
    assert not torch.equal(net.conv.weight, before["conv.weight"])


def test_a_step_that_is_found_infinite_changes_nothing() -> None:
    """The loop's skip without synchronisation: fused AdamW reads the flag on the device."""
    net = network()
    (optimizer,) = ADAMW.build(net)
    train(net, [optimizer], range(2))
    state = OptimizerState(net, [optimizer])

    def everything() -> dict[str, Tensor]:
        tensors = {k: v for k, v in state.state_dict().items() if isinstance(v, Tensor)}
        return {k: v.detach().clone() for k, v in {**tensors, **net.state_dict()}.items()}

    before = everything()
    gradients(net, 2)
    net.out.bias.grad = torch.full((2,), float("nan"))
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    after = everything()
    assert {k for k in before if "step" in k}
    assert all(torch.equal(before[k], after[k]) for k in before)
    gradients(net, 2)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    moved = everything()
    assert not any(torch.equal(before[k], moved[k]) for k in before)
    assert float(moved["out.bias/step"]) == 3


# ---- state ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_saved_and_loaded_goes_on_to_the_bit(
    config: AdamWConfig | MuonConfig, layout: torch.memory_format
) -> None:
    one = network()
    one.to(memory_format=layout)  # type: ignore[call-overload]
    optimizers = config.build(one)
    train(one, optimizers, range(3))

    saved = {
        key: value.detach().clone().contiguous() if isinstance(value, Tensor) else value
        for key, value in OptimizerState(one, optimizers).state_dict().items()
    }
    other = network(seed=1)
    other.to(memory_format=layout)  # type: ignore[call-overload]
    other.load_state_dict(one.state_dict())
    resumed = config.build(other)
    OptimizerState(other, resumed).load_state_dict(saved)

    train(one, optimizers, range(3, 6))
    train(other, resumed, range(3, 6))
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    a, b = (OptimizerState(n, o).state_dict() for n, o in ((one, optimizers), (other, resumed)))
    assert list(a) == list(b)
    assert all(torch.equal(x, b[k]) for k, x in a.items() if isinstance(x, Tensor))  # type: ignore[arg-type]


def test_the_state_of_other_optimizers_or_networks_is_refused() -> None:
    net = network()
    adamw, muon = ADAMW.build(net), MUON.build(net)
    train(net, adamw, range(1))
    saved = OptimizerState(net, adamw).state_dict()
    with pytest.raises(ValueError, match="saved by AdamW, this run has _MatrixMuon AdamW"):
        OptimizerState(net, muon).load_state_dict(saved)
    other = nn.Linear(2, 2)
    with pytest.raises(KeyError):
        OptimizerState(other, ADAMW.build(other)).load_state_dict(saved)


def test_state_is_named_by_parameter() -> None:
    net = network()
    optimizers = MUON.build(net)
    assert OptimizerState(net, optimizers).state_dict() == {"kinds": "_MatrixMuon AdamW"}
    train(net, optimizers, range(1))
    keys = set(OptimizerState(net, optimizers).state_dict())
    assert {"conv.weight/momentum_buffer", "out.bias/exp_avg", "temperature/step"} <= keys
    assert len(keys) == 1 + 2 + 3 * (len(list(net.parameters())) - 2)
