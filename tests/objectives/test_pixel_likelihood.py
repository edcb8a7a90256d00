"""Likelihood of pixels: all images of a tiny size together, and samples as probable as it says."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.pixels import to_levels, to_unit
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.pixelcnn.causal import Memory
from genus.networks.pixelcnn.gated import GatedPixelCNNConfig
from genus.networks.pixelcnn.plus_plus import PixelCNNPlusPlusConfig
from genus.objectives.logistic_mixture import Categorical, LogisticMixture, PixelLaw, unit_of
from genus.objectives.phase import CanLogDensity, CanSample, SampleOptions
from genus.objectives.pixel_likelihood import PixelLikelihoodConfig
from genus.samplers.pixels import sample_pixels

CLASSES = 2
Config = GatedPixelCNNConfig | PixelCNNPlusPlusConfig
NETWORKS: dict[str, Config] = {
    "gated": GatedPixelCNNConfig(width=6, layers=2, head=16),
    "plus plus": PixelCNNPlusPlusConfig(width=4, levels=2),
}
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())


def built(config: Config, law: PixelLaw, size: int = 2) -> nn.Module:
    """In float64, with weights that make some images much likelier than others."""
    torch.manual_seed(0)
    scale = 0.5 if isinstance(config, GatedPixelCNNConfig) else 0.3
    network = config.build(
        channels=law.channels, resolution=size, classes=CLASSES, outputs=law.outputs
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network.double().eval()


def batch_of(levels: Tensor, label: int | Tensor = 0) -> Batch:
    ids = torch.arange(len(levels))
    fields = {"image": levels.to(torch.uint8), "label": torch.as_tensor(label).expand(len(ids))}
    return Batch(fields, ids, 0, Draws.of(ids.tolist()))


def all_images(levels: int, shape: tuple[int, int, int]) -> Tensor:
    """(levels^(C H W), C, H, W); the first number varies slowest."""
    each = torch.tensor(list(product(range(levels), repeat=math.prod(shape))))
    return each.reshape(-1, *shape)


def place_of(images: Tensor, levels: int) -> Tensor:
    """The images' numbers in ``all_images``."""
    flat = images.flatten(1)
    return flat @ levels ** torch.arange(flat.shape[1] - 1, -1, -1)


def uneven() -> Tensor:
    return torch.tensor([[[[10, 250], [90, 128]]]])


# ---- probabilities -------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("mixtures", [0, 3])
@pytest.mark.parametrize(("bits", "shape"), [(2, (1, 2, 2)), (1, (3, 1, 2)), (1, (1, 3, 3))])
def test_probabilities_of_all_images_sum_to_one(
    config: Config, mixtures: int, bits: int, shape: tuple[int, int, int]
) -> None:
    objective = PixelLikelihoodConfig(mixtures=mixtures, bits=bits).build(shape, CLASSES)
    images = all_images(1 << bits, shape) << (8 - bits)
    network = built(config, objective.law)
    for label in range(CLASSES):
        found = objective.log_density({"pixels": network}, batch_of(images, label))
        assert float(found.nats.exp().sum().detach()) == pytest.approx(1, rel=1e-11)
        assert found.nats.std() > 0.1  # not all alike


@every_network
def test_with_three_levels_too(config: Config) -> None:
    law = LogisticMixture(1, 3, 2)
    images, label = all_images(3, (1, 2, 2)), torch.zeros(81, dtype=torch.long)
    parameters = built(config, law)(unit_of(images, 3, torch.float64), label)
    nats = law.log_probability(parameters, images).flatten(1).sum(1)
    assert float(nats.exp().sum().detach()) == pytest.approx(1, rel=1e-12)


def test_a_network_that_knows_nothing_has_the_entropy_of_its_levels() -> None:
    objective = PixelLikelihoodConfig(mixtures=0).build((1, 2, 2))
    network = GatedPixelCNNConfig().build(channels=1, resolution=2, outputs=256)
    nn.init.zeros_(network.head1.weight)
    nn.init.zeros_(network.head1.bias)
    loss, metrics = objective.loss({"pixels": network}, batch_of(uneven()))
    assert float(loss.detach()) == pytest.approx(8, rel=1e-6)
    assert float(metrics["loss"]) == float(loss.detach())


def test_loss_is_the_mean_log_density_in_bits_per_dimension() -> None:
    shape = (3, 4, 4)
    objective = PixelLikelihoodConfig(mixtures=3).build(shape, CLASSES)
    networks = {"pixels": built(NETWORKS["plus plus"], objective.law, 4)}
    batch = batch_of(torch.randint(256, (5, *shape)))
    found = objective.log_density(networks, batch)
    assert (found.kind, found.dims, found.unit) == ("exact", 48, "bits/dim")
    assert found.dequantisation == "none: probabilities of levels"
    loss, _ = objective.loss(networks, batch)
    torch.testing.assert_close(loss, -found.nats.mean() / (48 * math.log(2)), rtol=1e-12, atol=0)
    last = batch.fields["image"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        objective.log_density(networks, batch_of(last)).nats, found.nats, rtol=1e-12, atol=0
    )


def test_the_network_sees_what_to_unit_gives() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(unit_of(image.long(), 256), 2 * image.float() / 255 - 1)
    torch.testing.assert_close(unit_of(image.long(), 256), to_unit(image), rtol=0, atol=1e-6)


def test_the_bits_that_are_cut_off_say_nothing() -> None:
    objective = PixelLikelihoodConfig(mixtures=2, bits=3).build((1, 2, 2), CLASSES)
    networks = {"pixels": built(NETWORKS["gated"], objective.law)}
    found = objective.log_density(networks, batch_of(uneven()))
    other = objective.log_density(networks, batch_of(uneven() ^ 31))
    assert torch.equal(found.nats, other.nats)
    assert found.dequantisation == "none: probabilities of levels, 3 bits"
    assert not torch.equal(
        objective.log_density(networks, batch_of(uneven() ^ 32)).nats, found.nats
    )


def test_dropped_labels_train_the_class_of_none() -> None:
    objective = PixelLikelihoodConfig(label_dropout=1.0).build((1, 2, 2), CLASSES)
    networks = {"pixels": built(NETWORKS["gated"], objective.law)}
    losses = [objective.loss(networks, batch_of(uneven(), label))[0] for label in (0, CLASSES)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(
        objective.log_density(networks, batch_of(uneven(), 0)).nats,
        objective.log_density(networks, batch_of(uneven(), CLASSES)).nats,
    )


@every_network
def test_training_finds_the_entropy_of_a_small_source(config: Config) -> None:
    """All pixels alike, black or white: 1 bit for 4 dimensions."""
    torch.manual_seed(0)
    objective = PixelLikelihoodConfig(mixtures=2, bits=1).build((1, 2, 2))
    network = config.build(channels=1, resolution=2, outputs=objective.law.outputs)
    batch = batch_of((255 * torch.tensor([0, 1, 1, 0])).reshape(4, 1, 1, 1).expand(4, 1, 2, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss, _ = objective.loss({"pixels": network}, batch)
        loss.backward()
        optimizer.step()
    assert 0.25 <= float(loss.detach()) < 0.27


# ---- samples -------------------------------------------------------------------------------------


def probabilities(
    network: nn.Module, law: PixelLaw, size: tuple[int, int], guidance: float, temperature: float
) -> Tensor:
    """Of ``all_images``, from the definition: each channel's distribution of its own, combined and
    normalised, with class 1."""
    images = all_images(law.levels, (law.channels, *size))
    x = unit_of(images, law.levels, torch.float64)
    with_class, without = (
        network(x, torch.full((len(x),), label)).detach() for label in (1, CLASSES)
    )
    P = torch.ones(len(images), dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            for c in range(law.channels):
                earlier = images[:, :c, i, j]
                log_p = law.channel(with_class[:, :, i, j], earlier)
                log_q = law.channel(without[:, :, i, j], earlier)
                log_powers = (guidance * log_p + (1 - guidance) * log_q) / temperature
                level = images[:, c, i, j, None]
                P = P * log_powers.softmax(1).gather(1, level)[:, 0]
    return P


LAWS: dict[str, tuple[PixelLaw, tuple[int, int]]] = {
    "mixture": (LogisticMixture(1, 3, 2), (2, 2)),
    "mixture, colour": (LogisticMixture(3, 2, 2), (1, 2)),
    "softmax": (Categorical(1, 3), (2, 2)),
}


@every_network
@pytest.mark.parametrize(("law", "size"), LAWS.values(), ids=LAWS.keys())
@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.5)])
def test_samples_are_as_frequent_as_probable(
    config: Config, law: PixelLaw, size: tuple[int, int], guidance: float, temperature: float
) -> None:
    N, network = 6_000, built(config, law)
    drawn = sample_pixels(
        network,
        law,
        Draws.of([5], group_size=N),
        torch.ones(N, dtype=torch.long),
        size=size,
        dtype=torch.float64,
        classes=CLASSES,
        guidance=guidance,
        temperature=temperature,
    )
    P = probabilities(network, law, size, guidance, temperature)
    assert float(P.sum()) == pytest.approx(1, rel=1e-9)
    found = torch.bincount(place_of(drawn, law.levels), minlength=len(P)) / N
    error = (found - P).abs() / ((P * (1 - P) / N).sqrt() + 1 / N)
    assert error.max() < 5


@every_network
def test_guidance_and_temperature_change_the_probabilities(config: Config) -> None:
    """Else the test above would prove little."""
    law, size = LAWS["mixture"]
    network = built(config, law)
    assert probabilities(network, law, size, 2.5, 1.0).max() < 0.5
    plain = probabilities(network, law, size, 1.0, 1.0)
    for guidance, temperature in ((2.5, 1.0), (1.0, 0.5)):
        other = probabilities(network, law, size, guidance, temperature)
        assert (plain - other).abs().sum() > 0.1


def test_without_a_class_there_is_nothing_to_guide() -> None:
    law, size = LAWS["mixture"]
    network, draws = built(NETWORKS["gated"], law), Draws.of(range(50))
    plain, guided = (
        sample_pixels(
            network, law, draws, None, size=size, dtype=torch.float64, classes=CLASSES, guidance=w
        )
        for w in (1.0, 3.0)
    )
    assert torch.equal(plain, guided)


def test_temperature_0_takes_the_most_probable_level_of_each_channel() -> None:
    law = LogisticMixture(3, 8, 3)
    network = built(NETWORKS["plus plus"], law, 4)
    label = torch.tensor([0, 1])
    zero, cold = (
        sample_pixels(
            network, law, Draws.of([1, 2]), label, size=(4, 3), dtype=torch.float64, temperature=t
        )
        for t in (0.0, 1e-4)
    )
    assert torch.equal(zero, cold)
    parameters = network(unit_of(zero, 8, torch.float64), label)
    for i, j, c in product(range(4), range(3), range(3)):
        best = law.channel(parameters[:, :, i, j], zero[:, :c, i, j]).argmax(1)
        assert torch.equal(best, zero[:, c, i, j])


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_sample_depends_on_its_seed_alone(temperature: float) -> None:
    objective = PixelLikelihoodConfig(mixtures=3).build((3, 4, 4), CLASSES)
    networks = {"pixels": built(NETWORKS["plus plus"], objective.law, 4)}
    options = SampleOptions(temperature=temperature)
    seeds, label = [3, 1, 4, 15], torch.tensor([0, 1, 1, 0])
    together = objective.sample(networks, Draws.of(seeds), label, options)
    assert together.shape == (4, 3, 4, 4)
    for row, seed in enumerate(seeds):
        alone = objective.sample(networks, Draws.of([seed]), label[row : row + 1], options)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[1], together[2])


class Counted(nn.Module):
    """How often, and for how many rows, a network is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []

    def forward(self, x: Tensor, label: Tensor | None, memory: Memory) -> Tensor:
        self.rows.append(len(x))
        y: Tensor = self.network(x, label, memory)
        return y


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_plan_counts_the_calls(guidance: float) -> None:
    objective = PixelLikelihoodConfig(mixtures=2, label_dropout=0.1).build((1, 4, 6), CLASSES)
    network = Counted(built(NETWORKS["gated"], objective.law))
    options = SampleOptions(guidance=guidance)
    objective.sample({"pixels": network}, Draws.of([1, 2]), torch.tensor([0, 1]), options)
    plan = objective.plan(options)
    assert sum(network.rows) == 2 * plan.nfe == 2 * 24 * guidance
    assert plan.guidance == guidance
    assert PixelLikelihoodConfig().build((1, 4, 6)).plan(SampleOptions()).guidance is None


@pytest.mark.parametrize("bits", range(1, 9))
def test_samples_are_at_the_levels_of_the_data(bits: int) -> None:
    """What is drawn, written as an image and read again is the level that was drawn."""
    levels = torch.arange(1 << bits)
    image = to_levels(unit_of(levels, 1 << bits))
    assert torch.equal(image.long() >> (8 - bits), levels)


def test_what_the_family_offers() -> None:
    objective = PixelLikelihoodConfig().build((1, 4, 4), CLASSES)
    assert isinstance(objective, CanSample)
    assert isinstance(objective, CanLogDensity)
    assert objective.traits.density == "exact"
    assert [(phase.name, phase.trains) for phase in objective.phases] == [
        ("likelihood", ("pixels",))
    ]
    objective.load_state_dict(objective.state_dict())


def test_settings_that_cannot_be_are_refused() -> None:
    for bad in ({"bits": 0}, {"bits": 9}, {"mixtures": -1}, {"label_dropout": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            PixelLikelihoodConfig(**bad)
    plain = PixelLikelihoodConfig().build((1, 4, 4), CLASSES)
    refused = {
        "label_dropout": SampleOptions(guidance=2.0),
        "--steps": SampleOptions(steps=3),
        "temperature -1": SampleOptions(temperature=-1.0),
    }
    for message, options in refused.items():
        with pytest.raises(ConfigError, match=message):
            plain.plan(options)
    with pytest.raises(ConfigError, match="classes"):
        PixelLikelihoodConfig().build((1, 4, 4)).plan(SampleOptions(guidance=2.0))
    floats = Batch({"image": torch.zeros(1, 1, 4, 4)}, torch.arange(1), 0, Draws.of([0]))
    with pytest.raises(ConfigError, match="uint8"):
        PixelLikelihoodConfig().build((1, 4, 4)).loss({"pixels": nn.Linear(1, 1)}, floats)
