"""Parameter groups, AdamW and Muon, and their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from genus import config as config_module
from genus.errors import ConfigError
from genus.networks.dit import DiTConfig
from genus.networks.flows.dequantiser import DequantiserConfig
from genus.networks.flows.flow import build_flow
from genus.networks.flows.image import GlowConfig, NICEConfig, RealNVPConfig
from genus.networks.flows.tarflow import TarFlowConfig
from genus.networks.flows.vector import VectorFlowConfig
from genus.networks.pixelcnn.gated import GatedPixelCNNConfig
from genus.networks.pixelcnn.plus_plus import PixelCNNPlusPlusConfig
from genus.networks.transformer.decoder import TransformerConfig
from genus.networks.transformer.encoder_decoder import EncoderDecoderConfig
from genus.networks.unet import UNetConfig
from genus.optim.build import AdamWConfig, MuonConfig, set_learning_rates
from genus.optim.muon import MatrixMuon
from genus.optim.state import OptimizerState

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


# ---- ends of each kind of network ----------------------------------------------------------------

TRANSFORMER = TransformerConfig(width=8, depth=2, heads=2, positions="learned")
SEQUENCES = EncoderDecoderConfig(width=8, depth=2, heads=2)
IMAGES = {"channels": 1, "resolution": 8, "classes": 3}
FLOW = "bijection.maps."
ENDS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "tied": (lambda: TRANSFORMER.build(vocabulary=7, length=6, classes=3), set()),
    "untied": (
        lambda: replace(TRANSFORMER, tied=False).build(vocabulary=7, length=6),
        {"head.weight"},
    ),
    "from tokens": (
        lambda: SEQUENCES.build(vocabulary=7, length=6, source_length=5, source_vocabulary=4),
        set(),
    ),
    "from frames": (
        lambda: replace(SEQUENCES, tied=False).build(
            vocabulary=7, length=6, source_length=5, source_features=4
        ),
        {"encoder.embedding.weight", "decoder.head.weight"},
    ),
    "gated pixelcnn": (
        lambda: GatedPixelCNNConfig(width=4, layers=2).build(**IMAGES, outputs=6),
        {"vertical.0.conv.weight", "horizontal.0.conv.weight", "head1.weight"},
    ),
    "pixelcnn++": (
        lambda: PixelCNNPlusPlusConfig(width=4, levels=2).build(**IMAGES, outputs=6),
        {"above0.weight", "above1.weight", "left.weight", "head.weight"},
    ),
    "unet": (
        lambda: UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(), head_channels=0).build(
            **IMAGES
        ),
        {"conditioning.linear0.weight", "head.weight"},
    ),
    "dit": (
        lambda: DiTConfig(width=8, depth=2, heads=2).build(**IMAGES),
        {"conditioning.linear0.weight", "head.weight"},
    ),
    "glow": (
        lambda: build_flow(GlowConfig(steps=1, levels=2, width=4), (1, 8, 8), classes=3),
        {FLOW + "2.lower", FLOW + "4.prior.conditioner.last.weight"},
    ),
    "realnvp": (
        lambda: build_flow(RealNVPConfig(levels=1, width=4, blocks=1), (1, 8, 8), classes=3),
        {FLOW + "0.conditioner.first.weight", FLOW + "6.conditioner.last.weight"},
    ),
    "nice": (
        lambda: build_flow(NICEConfig(width=4, depth=2), (1, 8, 8), classes=3),
        {FLOW + "2.conditioner.first.weight", FLOW + "5.conditioner.last.weight"},
    ),
    "tarflow": (
        lambda: build_flow(
            TarFlowConfig(width=8, head_width=4, blocks=2, layers=1), (1, 8, 8), classes=3
        ),
        {FLOW + "1.positions", FLOW + "2.last.weight"},
    ),
    "nsf": (
        lambda: build_flow(VectorFlowConfig(layers=2, width=4), (2,), classes=3),
        {FLOW + "1.maps.0.own", FLOW + "1.maps.2.conditioner.last.weight"},
    ),
    "maf": (
        lambda: build_flow(VectorFlowConfig(kind="maf", layers=2, width=4), (2,), classes=3),
        {FLOW + "1.maps.0.made.layers.0.weight", FLOW + "1.maps.2.made.context.weight"},
    ),
    "dequantiser": (
        lambda: DequantiserConfig(layers=2, width=4).build((1, 8, 8)),
        {"features.0.weight", "flow.maps.1.conditioner.net.last.weight"},
    ),
}
TABLES = ("embedding.weight", "positions.weight", "table.weight")
"""Ends of the names of embeddings."""


def muons(net: nn.Module) -> set[str]:
    """Names of Muon's parameters; all others are AdamW's, each once."""
    muon, adamw = MUON.build(net)
    theirs = names(net, muon.param_groups[0]["params"])
    rest = [p for group in adamw.param_groups for p in group["params"]]
    assert len(rest) == len({id(p) for p in rest})
    assert names(net, rest) == set(dict(net.named_parameters())) - theirs
    return theirs


@pytest.mark.parametrize("kind", ENDS)
def test_muon_takes_all_matrices_but_embeddings_and_ends(kind: str) -> None:
    make, ends = ENDS[kind]
    net = make()
    matrices = {name for name, p in net.named_parameters() if p.ndim >= 2}
    assert ends <= matrices
    tables = {name for name in matrices if name.endswith(TABLES)}
    assert muons(net) == matrices - tables - ends


def test_muons_parameters_by_name() -> None:
    inside = {"attention.qkv", "attention.out", "mlp.up", "mlp.down"}
    expected = {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in inside}
    assert muons(ENDS["tied"][0]()) == muons(ENDS["untied"][0]()) == expected
    both_parts = {f"{part}.{name}" for part in ("encoder", "decoder") for name in expected}
    cross = {f"decoder.blocks.{i}.cross.{q}.weight" for i in (0, 1) for q in ("q", "kv", "out")}
    assert muons(ENDS["from tokens"][0]()) == muons(ENDS["from frames"][0]()) == both_parts | cross
    assert muons(ENDS["gated pixelcnn"][0]()) == {
        *(f"vertical.{i}.across.weight" for i in range(3)),
        *(f"horizontal.{i}.out.weight" for i in range(3)),
        *(f"{s}.{i}.conv.conv.weight" for s in ("vertical", "horizontal") for i in (1, 2)),
        "head0.weight",
    }


def test_what_surrounds_a_known_network_has_ends_of_its_own() -> None:
    around = nn.Sequential(
        nn.Linear(2, 8), nn.Linear(8, 8), ENDS["untied"][0](), nn.Linear(7, 8), nn.Linear(8, 2)
    )
    taken = muons(around)
    assert {"1.weight", "3.weight", "2.blocks.0.attention.qkv.weight"} <= taken
    assert not {"0.weight", "4.weight", "2.head.weight"} & taken


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["untied", "from frames", "pixelcnn++", "unet", "tarflow"])
def test_wrapped_networks_are_divided_alike(kind: str) -> None:
    expected = muons(ENDS[kind][0]())
    copies = nn.parallel.DistributedDataParallel(ENDS[kind][0]())
    assert muons(copies) == {f"module.{name}" for name in expected}
    sharded = ENDS[kind][0]()
    for block in getattr(sharded, "blocks", []):
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    assert muons(sharded) == expected


# ---- rates by width ------------------------------------------------------------------------------

NARROW = AdamWConfig(lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, tuned_width=2)


def peaks(net: nn.Module, config: AdamWConfig) -> dict[str, tuple[float, float]]:
    """Each parameter's peak rate and weight decay."""
    (optimizer,) = config.build(net)
    found = {}
    for group in optimizer.param_groups:
        assert group["lr"] == group["peak"]
        for name in names(net, group["params"]):
            assert name not in found
            found[name] = (group["peak"], group["weight_decay"])
    assert found.keys() == dict(net.named_parameters()).keys()
    return found


@pytest.mark.parametrize("kind", ["tied", "untied", "from tokens", "from frames"])
def test_matrices_of_a_transformer_four_times_as_wide_take_a_quarter(kind: str) -> None:
    net = ENDS[kind][0]()
    reads = {"encoder.embedding.weight"} if kind == "from frames" else set()
    for name, found in peaks(net, NARROW).items():
        p = net.get_parameter(name)
        if p.ndim < 2 or (name.endswith(TABLES) and name not in reads):
            assert found == (1e-2, 0.0), name
        elif name in reads:
            assert found == (1e-2, 0.1), name
        else:  # blocks, and heads
            assert found == (2.5e-3, 0.4), name


def test_rates_by_width_are_plain_ones_without_it_and_at_its_own() -> None:
    net = ENDS["from frames"][0]()
    plain = peaks(net, replace(NARROW, tuned_width=0))
    assert set(plain.values()) == {(1e-2, 0.1), (1e-2, 0.0)}
    assert peaks(net, replace(NARROW, tuned_width=8)) == plain
    assert peaks(net, replace(NARROW, tuned_width=16))["decoder.head.weight"] == (2e-2, 0.05)


def test_a_step_moves_each_by_its_rate() -> None:
    """The first step of Adam is the rate times the gradient's sign; the decay takes lr * decay of
    every matrix, also where the rate is lower."""
    net = ENDS["untied"][0]()
    (optimizer,) = NARROW.build(net)
    set_learning_rates({"net": [optimizer]}, 0.5)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        inner = p.ndim >= 2 and not name.endswith(TABLES)
        kept = 1 - 0.5 * 1e-2 * 0.1 if inner else 1.0
        expected = kept * before[name] - 0.5 * (2.5e-3 if inner else 1e-2)
        assert torch.allclose(p, expected, rtol=0, atol=1e-6), name


def test_rates_by_width_are_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"tuned_width is for networks.*UNet does not"):
        NARROW.build(ENDS["unet"][0]())
    with pytest.raises(ConfigError, match="tuned_width=-1"):
        AdamWConfig(tuned_width=-1)
    assert NARROW.build(nn.ReLU()) == []


def test_the_option_survives_the_configs_text() -> None:
    assert config_module.loads(AdamWConfig, config_module.dumps(NARROW)) == NARROW
    before = config_module.dumps(AdamWConfig()).replace('"tuned_width": 0,', "")
    assert "tuned_width" not in before
    assert config_module.loads(AdamWConfig, before) == AdamWConfig()


def test_state_from_before_the_rates_by_width_is_loaded() -> None:
    """Group by group the parameters lie otherwise, by name they do not."""
    old, new = (ENDS["untied"][0]() for _ in range(2))
    optimizers = replace(NARROW, tuned_width=0).build(old)
    gradients(old, 0)
    optimizers[0].step()
    saved = OptimizerState(old, optimizers).state_dict()
    resumed = NARROW.build(new)
    state = OptimizerState(new, resumed)
    state.load_state_dict(saved)
    loaded = state.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(x, loaded[k]) for k, x in saved.items() if isinstance(x, Tensor))  # type: ignore[arg-type]


def test_state_from_before_muons_rule_of_ends_is_loaded() -> None:
    """Then the first and the last matrix of any network were AdamW's; both ways of moving."""
    old, new = (ENDS["pixelcnn++"][0]() for _ in range(2))
    wide = [p for name, p in old.named_parameters() if p.ndim >= 2 and not name.endswith(TABLES)]
    inner = {id(p) for p in wide[1:-2]}  # without one that is now Muon's
    optimizers = [
        MatrixMuon([p for p in old.parameters() if id(p) in inner], lr=0.05, momentum=0.9),
        *AdamWConfig().over([p for p in old.parameters() if id(p) not in inner], set()),
    ]
    gradients(old, 0)
    for optimizer in optimizers:
        optimizer.step()
    saved = OptimizerState(old, optimizers).state_dict()
    resumed = MUON.build(new)
    state = OptimizerState(new, resumed)
    state.load_state_dict(saved)
    moved = names(old, [p for p in wide if id(p) in inner]) ^ muons(new)
    assert len(moved) == 3  # above1 and left, and the one above
    loaded = state.state_dict()
    assert {key.rpartition("/")[0] for key in saved.keys() - loaded.keys()} == moved
    gradients(new, 1)
    for optimizer in resumed:
        optimizer.step()
    everything = {key.rpartition("/")[0] for key in state.state_dict()} - {""}
    assert everything == set(dict(new.named_parameters()))


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
def test_muon_equals_torchs_on_matrices(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)  # torch's rounds on every device
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
            assert torch.allclose(p.flatten(1), plain[name], rtol=0, atol=1e-6), name
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
    with pytest.raises(ValueError, match="saved by AdamW, this run has MatrixMuon AdamW"):
        OptimizerState(net, muon).load_state_dict(saved)
    other = nn.Linear(2, 2)
    with pytest.raises(KeyError):
        OptimizerState(other, ADAMW.build(other)).load_state_dict(saved)


def test_state_is_named_by_parameter() -> None:
    net = network()
    optimizers = MUON.build(net)
    assert OptimizerState(net, optimizers).state_dict() == {"kinds": "MatrixMuon AdamW"}
    train(net, optimizers, range(1))
    keys = set(OptimizerState(net, optimizers).state_dict())
    assert {"conv.weight/momentum_buffer", "out.bias/exp_avg", "temperature/step"} <= keys
    assert len(keys) == 1 + 2 + 3 * (len(list(net.parameters())) - 2)


def test_what_a_step_learns_is_shared_out_among_its_updates() -> None:
    """c = k / (k + 1) for a lazy regulariser at each k-th step: Karras et al. 2020, appendix B."""
    network, updates = nn.Linear(3, 3), 1 + 1 / 16
    config = AdamWConfig(lr=2e-3, betas=(0.0, 0.99), last_beta2=0.999)
    (shared,) = config.build(network, updates)
    for group in shared.param_groups:
        assert group["lr"] == pytest.approx(2e-3 * 16 / 17)
        assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
        assert group["beta2"] == pytest.approx((0.99 ** (16 / 17), 0.999 ** (16 / 17)))
    plain, same = config.build(network)[0], config.build(network, 1.0)[0]
    assert plain.param_groups[0]["lr"] == same.param_groups[0]["lr"] == 2e-3
    deep = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    muon = MuonConfig(lr=0.02, momentum=0.95).build(deep, 2)
    assert muon[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_the_second_moments_decay_moves_with_the_schedule() -> None:
    (optimizer,) = AdamWConfig(betas=(0.0, 0.9), last_beta2=0.99).build(nn.Linear(2, 2))
    for decayed, beta in ((0.0, 0.9), (0.5, 0.945), (1.0, 0.99)):
        set_learning_rates({"net": [optimizer]}, 1.0, decayed)
        assert all(g["betas"] == pytest.approx((0.0, beta)) for g in optimizer.param_groups)
