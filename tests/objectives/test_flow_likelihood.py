"""Maximum likelihood of flows: densities, bounds, codes and samples against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.pixels import to_levels
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.flows.bijection import Chain
from genus.networks.flows.dequantiser import DequantiserConfig
from genus.networks.flows.flow import FEATURES, Flow, build_flow
from genus.networks.flows.image import GlowConfig
from genus.networks.flows.linear import ActNorm
from genus.networks.flows.reshape import Shape
from genus.networks.flows.tarflow import MetaBlock, Patches
from genus.networks.flows.vector import VectorFlowConfig
from genus.objectives.flow_likelihood import FlowLikelihood, FlowLikelihoodConfig
from genus.objectives.phase import SampleOptions
from genus.round_trip import round_trip

PIXELS = (1, 1, 2)  # two pixels: all their levels can be counted


def images(levels: Tensor, seed: int = 0) -> Batch:
    ids = torch.arange(len(levels))
    draws = Draws.of([seed * 1_000_003 + i for i in ids.tolist()])
    return Batch({"image": levels.to(torch.uint8)}, ids, 0, draws)


def vectors(x: Tensor) -> Batch:
    ids = torch.arange(len(x))
    return Batch({"vector": x}, ids, 0, Draws.of(ids.tolist()))


def gaussian(shape: tuple[int, int, int], mean: float = 0.0, deviation: float = 1.0) -> Flow:
    """The flow of N(mean, deviation^2) a channel, exactly, in float64."""
    norm = ActNorm(shape[0]).double()
    nn.init.constant_(norm.bias, -mean)
    nn.init.constant_(norm.log_scale, -math.log(deviation))
    return Flow(Chain([norm, Shape(*shape)])).double()


def normal_law(mean: float, deviation: float) -> torch.distributions.Normal:
    return torch.distributions.Normal(*torch.tensor([mean, deviation], dtype=torch.float64))


def jittered(flow: nn.Module, scale: float = 0.3) -> nn.Module:
    """Random weights: flows start at the identity."""
    torch.manual_seed(1)
    for parameter in flow.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return flow


def two_pixel_flow() -> nn.Module:
    pixels = VectorFlowConfig(kind="maf", layers=2, width=8).build(dims=2)
    return jittered(Flow(Chain([Shape(*PIXELS), pixels]))).double()


def test_a_gaussian_flow_has_the_gaussian_density() -> None:
    shape = (2, 3, 3)
    objective = FlowLikelihoodConfig().build(shape)
    levels = torch.randint(0, 256, (7, *shape))
    batch = images(levels)
    found = objective.log_density({"flow": gaussian(shape, 0.2, 0.7)}, batch)
    noisy = levels + batch.draws.uniform("dequantise", shape).double()
    normal = normal_law(128 * 1.2, 128 * 0.7)  # of the levels themselves
    torch.testing.assert_close(
        found.nats, normal.log_prob(noisy).flatten(1).sum(1), rtol=1e-12, atol=0
    )
    assert (found.kind, found.unit, found.dims) == ("exact", "bits/dim", 18)
    loss, metrics = objective.loss({"flow": gaussian(shape, 0.2, 0.7)}, batch)
    assert float(loss.detach()) == pytest.approx(
        float(-found.nats.detach().mean()) / (18 * math.log(2)), rel=1e-9
    )
    assert float(metrics["loss"]) == float(loss.detach())


def test_fewer_bits_are_the_density_of_coarser_levels() -> None:
    objective = FlowLikelihoodConfig(bits=3).build(PIXELS)
    levels = torch.tensor([0, 31, 32, 255]).reshape(2, *PIXELS)
    batch = images(levels)
    found = objective.log_density({"flow": gaussian(PIXELS)}, batch)
    noisy = (
        torch.tensor([0, 0, 1, 7]).reshape(2, *PIXELS)
        + batch.draws.uniform("dequantise", PIXELS).double()
    )
    normal = normal_law(4, 4)
    torch.testing.assert_close(
        found.nats, normal.log_prob(noisy).flatten(1).sum(1), rtol=1e-12, atol=0
    )


def test_uniform_dequantisation_bounds_the_probability_of_every_level() -> None:
    """With 2 bits and 2 pixels there are 16 images; their probabilities are integrals over bins."""
    objective = FlowLikelihoodConfig(bits=2).build(PIXELS)
    networks = {"flow": two_pixel_flow()}
    levels = torch.cartesian_prod(torch.arange(4), torch.arange(4)).reshape(-1, *PIXELS)
    P = bin_probabilities(objective, networks["flow"], levels)
    bound = torch.stack(
        [objective.log_density(networks, images(64 * levels, seed)).nats for seed in range(400)]
    )
    assert (bound.mean(0) <= P.log() + 4 * bound.std(0) / 20).all()
    assert (bound.mean(0) < P.log() - 1e-3).any()  # a bound, not the value
    estimate = bound.exp().mean(0)  # of the probability it is unbiased
    assert ((estimate - P).abs() < 5 * bound.exp().std(0) / 20 + 1e-9).all()


def bin_probabilities(objective: FlowLikelihood, flow: nn.Module, levels: Tensor) -> Tensor:
    """P(level) = the integral of the flow's density over each level's bin, by a fine grid."""
    steps = 200
    inside = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    u = torch.cartesian_prod(inside, inside).reshape(-1, *PIXELS)
    found = []
    for level in levels:
        x = (level + u) / 2 - 1  # [0, 4) to [-1, 1)
        z, log_det = flow(x)
        log_p = log_det - z.square().sum(1) / 2 - math.log(2 * math.pi) - 2 * math.log(2)
        found.append(log_p.exp().mean())
    return torch.stack(found)


def test_variational_dequantisation_begins_uniform_and_its_weights_are_exact() -> None:
    shape = (1, 2, 2)
    objective = FlowLikelihoodConfig(dequantisation="variational").build(shape)
    flow = gaussian(shape, 0.1, 0.5)
    dequantiser = DequantiserConfig(layers=2, width=8).build(shape).double()
    networks = {"flow": flow, "dequantiser": dequantiser}
    levels = torch.tensor([[3, 200, 90, 128]]).reshape(1, *shape).expand(4000, *shape)
    batch = images(levels)
    eps = batch.draws.normal("dequantise", shape).double()
    u, log_q = dequantiser(objective._to_unit(levels + 0.5).double(), eps)
    torch.testing.assert_close(u, torch.special.ndtr(eps), rtol=0, atol=1e-12)
    assert log_q.abs().max() < 1e-10  # uniform on the unit cube
    jittered(dequantiser, 0.2)
    found = objective.log_density(networks, batch)
    assert found.kind == "lower bound"
    normal = normal_law(128 * 1.1, 64)
    level = levels[0].double()
    log_P = (normal.cdf(level + 1) - normal.cdf(level)).log().sum()
    weights = (found.nats - log_P).exp()  # p(x + u) / q(u | x) / P(x): the mean is 1 for every q
    assert weights.std() > 0.1
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(4000)
    assert found.nats.mean() < log_P


def test_training_the_dequantiser_tightens_the_bound() -> None:
    shape = (1, 2, 2)
    objective = FlowLikelihoodConfig(dequantisation="variational", bits=1).build(shape)
    flow = gaussian(shape, 0.0, 0.4)  # steep within the two bins: uniform noise is far from best
    dequantiser = DequantiserConfig(layers=2, width=8).build(shape).double()
    networks = {"flow": flow, "dequantiser": dequantiser}
    levels = 255 * torch.randint(0, 2, (256, *shape))
    optimizer = torch.optim.Adam(dequantiser.parameters(), 0.01)
    losses = []
    for step in range(150):
        loss, _ = objective.loss(networks, images(levels, step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    truth = 1.0  # bits/dim: each of the two levels has probability 1/2 a pixel
    assert losses[0] > 1.5
    assert truth - 0.05 < sum(losses[-20:]) / 20 < losses[0] - 0.3


@pytest.mark.parametrize("base", ["normal", "logistic"])
def test_the_base_distribution_is_that_of_its_name(base: str) -> None:
    objective = FlowLikelihoodConfig(base=base).build((2,))  # type: ignore[arg-type]
    flow = build_flow(VectorFlowConfig(kind="realnvp", layers=2, width=8), (2,)).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    z, log_det = flow(x)
    logistic = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros(2).double(), torch.ones(2).double()),
        [torch.distributions.SigmoidTransform().inv],
    )
    law = normal_law(0, 1) if base == "normal" else logistic
    found = objective.log_density({"flow": flow}, vectors(x))
    torch.testing.assert_close(found.nats, law.log_prob(z).sum(1) + log_det, rtol=1e-10, atol=1e-10)
    assert (found.kind, found.unit) == ("exact", "nats")
    draws = Draws.of(range(20_000))
    z = flow(objective.sample({"flow": flow}, draws, None, SampleOptions()))[0]
    assert float(z.std()) == pytest.approx(
        1 if base == "normal" else math.pi / math.sqrt(3), rel=0.03
    )


def test_decoded_codes_are_the_levels_exactly() -> None:
    shape = (3, 8, 8)
    objective = FlowLikelihoodConfig().build(shape, classes=4)
    flow = build_flow(GlowConfig(steps=2, levels=2, width=8), shape, classes=4)
    networks = {"flow": jittered(flow, 0.1)}
    batch = images(torch.randint(0, 256, (5, *shape)))
    batch.fields["label"] = torch.arange(5) % 4  # type: ignore[index]
    error = round_trip(objective, networks, batch)
    assert error.max() < 0.01
    flow.double()
    assert round_trip(objective, networks, batch).max() < 1e-8


def test_decoded_codes_of_fewer_bits_are_the_cut_levels() -> None:
    shape = (1, 4, 4)
    objective = FlowLikelihoodConfig(bits=3).build(shape)
    networks = {"flow": jittered(build_flow(GlowConfig(steps=2, levels=1, width=8), shape), 0.1)}
    batch = images(torch.randint(0, 256, (5, *shape)))
    back = objective.decode(networks, objective.encode(networks, batch), None)
    assert torch.equal(to_levels(back), batch["image"] // 32 * 32)
    drawn = to_levels(objective.sample(networks, Draws.of(range(9)), None, SampleOptions()))
    inside = (drawn > 0) & (drawn < 255)  # clipped ones aside
    assert (drawn[inside] % 32 == 0).all()
    assert objective.traits.latent.startswith("quantised")


def test_temperature_scales_the_code() -> None:
    objective = FlowLikelihoodConfig(temperature=0.5).build((2,))
    flow = build_flow(VectorFlowConfig(layers=2, width=8), (2,))
    networks = {"flow": jittered(flow)}

    def code(temperature: float | None) -> Tensor:
        options = SampleOptions(temperature=temperature)
        z: Tensor = flow(objective.sample(networks, Draws.of(range(50)), None, options))[0]
        return z

    torch.testing.assert_close(code(1.0), 2 * code(None), rtol=1e-3, atol=1e-3)
    assert code(0.0).abs().max() < 1e-3
    assert "temperature 0.5" in str(objective.plan(SampleOptions()))


def test_denoising_gives_the_mean_of_what_was_noisy() -> None:
    """For x of N(m, s^2), y = x + N(0, t^2): E[x | y] = (s^2 y + t^2 m) / (s^2 + t^2)."""
    shape, m, s, t = (1, 1, 2), 0.1, 0.6, 0.3
    objective = FlowLikelihoodConfig(noise=t).build(shape)
    flow = gaussian(shape, m, math.hypot(s, t))
    draws = Draws.of(range(40))
    shown = objective.sample({"flow": flow}, draws, None, SampleOptions())
    y = m + math.hypot(s, t) * draws.normal("z", (2,)).double().reshape(-1, *shape)
    mean = (s**2 * y + t**2 * m) / (s**2 + t**2)
    torch.testing.assert_close(shown, 256 / 255 * (mean + 1) - 1 / 255 - 1, rtol=0, atol=1e-7)


def test_noise_is_added_to_the_image_in_its_unit() -> None:
    shape = (1, 4, 4)
    objective = FlowLikelihoodConfig(noise=0.05).build(shape)
    batch = images(torch.full((3000, *shape), 128))
    x = objective._noisy(batch)
    assert float(x.mean()) == pytest.approx(0.5 / 128, abs=2e-3)
    assert float(x.std()) == pytest.approx(0.05, rel=0.02)


def test_guidance_of_one_patch_moves_its_normal_law() -> None:
    """After the first patch, a and b are known numbers: b_none + w (b_class - b_none), a alike."""
    shape = (1, 1, 2)
    block = MetaBlock(2, 1, 8, 1, 2, backwards=False, features=FEATURES)
    flow = jittered(Flow(Chain([Patches(1, 1, 1), block, Shape(2, 1)]), classes=3)).double()
    label, nothing = torch.tensor([0, 1, 2, 2]), torch.full((4,), 3)
    z = torch.randn(4, 2, dtype=torch.float64)

    def law(classes: Tensor) -> tuple[Tensor, Tensor]:
        """b and a of the second pixel, given that the first one is z's first."""
        at = [flow(torch.stack([z[:, 0], z.new_full((4,), v)], 1).reshape(-1, *shape), classes)[0]
              for v in (0.0, 1.0)]  # fmt: skip
        scale = at[1][:, 1] - at[0][:, 1]  # exp(-a)
        return -at[0][:, 1] / scale, -scale.log()

    (b, a), (b_none, a_none) = law(label), law(nothing)
    for weight in (0.0, 1.0, 2.5):
        x = flow(z, label, inverse=True, guidance=weight).flatten(1)
        b_w, a_w = b_none + weight * (b - b_none), a_none + weight * (a - a_none)
        torch.testing.assert_close(x[:, 0], z[:, 0])
        torch.testing.assert_close(x[:, 1], z[:, 1] * a_w.exp() + b_w)
    assert (b - b_none).abs().max() > 1e-2


def test_initialisation_depends_on_the_samples_alone() -> None:
    shape = (1, 4, 4)
    objective = FlowLikelihoodConfig().build(shape)
    batch = images(torch.randint(0, 256, (64, *shape)))
    states = []
    for seed in (4, 5):
        torch.manual_seed(3)
        flow = build_flow(GlowConfig(steps=2, levels=1, width=8), shape)
        before = {key: value.clone() for key, value in flow.state_dict().items()}
        torch.manual_seed(seed)  # torch's own generator has no part in it
        objective.initialise({"flow": flow}, batch)
        states.append(flow.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in before)
    changed = {key for key in before if not torch.equal(states[0][key], before[key])}
    assert changed == {
        key for key in before if key.endswith(("bias", "log_scale")) and "cond" not in key
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SampleOptions(steps=5), "--steps"),
        (SampleOptions(method="heun"), "--method"),
        (SampleOptions(temperature=-1.0), "temperature -1"),
        (SampleOptions(guidance=2.0), "guidance needs classes and the tarflow network"),
    ],
)
def test_what_a_flow_can_not_do_is_refused(options: SampleOptions, message: str) -> None:
    objective = FlowLikelihoodConfig().build((1, 4, 4))
    with pytest.raises(ConfigError, match=message):
        objective.plan(options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 9}, "bits from 1 to 8"),
        ({"noise": -0.1}, "noise not negative"),
        ({"noise": 0.1, "dequantisation": "variational"}, "set one of them"),
        ({"label_dropout": 2.0}, "probability"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlowLikelihoodConfig(**settings)  # type: ignore[arg-type]


def test_vectors_are_not_dequantised() -> None:
    with pytest.raises(ConfigError, match="vectors are not dequantised"):
        FlowLikelihoodConfig(dequantisation="variational").build((3,))


def test_images_that_are_not_levels_are_refused() -> None:
    objective = FlowLikelihoodConfig().build((1, 4, 4))
    batch = Batch({"image": torch.rand(2, 1, 4, 4)}, torch.arange(2), 0, Draws.of([0, 1]))
    with pytest.raises(ConfigError, match="pixel levels"):
        objective.loss({"flow": gaussian((1, 4, 4))}, batch)
