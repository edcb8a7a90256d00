"""Projection into W, and directions in it, on problems whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genus.draws import Draws, seed_of
from genus.errors import ConfigError
from genus.evaluate.image_distance import ImageDistance
from genus.evaluate.image_measures import MEASURES, nearness
from genus.inversion import InversionConfig, Start, invert, nearest, noise_penalty, start_of
from genus.latent_directions import (
    Direction,
    between_classes,
    boundary,
    component,
    correlation,
    in_deviations,
    slope,
    within,
    without,
)
from genus.objectives.phase import Codes

WIDTH, LAYERS = 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear:
    """image = sum over the layers of styles @ matrix[layer] (+ noise in further pixels)."""

    def __init__(self, noise: int = 0) -> None:
        self.matrix = normal(LAYERS, WIDTH, 30, seed=1) / math.sqrt(LAYERS * WIDTH)
        self.noise = noise

    def __call__(self, codes: Codes) -> Tensor:
        image = torch.einsum("blw,lwd->bd", codes.code, self.matrix)
        return image if codes.noise is None else torch.cat([image, codes.noise], dim=1)


def search(
    target: Tensor, generator: Linear, rows: slice = slice(None), noise: bool = False, **more: int
) -> Codes:
    target = target[rows]
    count = len(target)
    start = Start(torch.ones(count, WIDTH, dtype=torch.float64) * 0.3, torch.ones(count).double())
    seeds = [seed_of(0, number) for number in range(5)][rows]
    return invert(
        generator,
        lambda found: (found - target).square().mean(1),
        start,
        LAYERS,
        [64] if noise else [],
        Draws.of(seeds),
        InversionConfig(steps=600, **more),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("each_layer", [False, True])
def test_a_linear_generator_is_solved_exactly(each_layer: bool) -> None:
    generator = Linear()
    layers = normal(5, LAYERS if each_layer else 1, WIDTH, seed=2).expand(-1, LAYERS, -1)
    found = search(generator(Codes(layers)), generator, each_layer=each_layer).code
    assert found.shape == (5, LAYERS, WIDTH)
    assert (found - layers).abs().max() < 1e-4
    assert each_layer or torch.equal(found[:, 0], found[:, 2])


def test_a_w_of_the_wrong_kind_is_not_reached() -> None:
    generator = Linear()
    target = generator(Codes(normal(5, LAYERS, WIDTH, seed=2)))
    left = (generator(search(target, generator)) - target).square().mean(1)
    assert left.min() > 0.02  # one w can't do what three did
    each = search(target, generator, each_layer=True)
    assert (generator(each) - target).square().mean(1).max() < 1e-6


def test_rows_depend_on_themselves_alone() -> None:
    generator = Linear(noise=64)
    target = torch.cat([normal(5, 30, seed=3), normal(5, 64, seed=4)], dim=1)
    whole = search(target, generator, noise=True)
    part = search(target, generator, slice(1, 3), noise=True)
    assert torch.allclose(whole.code[1:3], part.code, atol=1e-9)
    assert whole.noise is not None
    assert part.noise is not None
    assert torch.allclose(whole.noise[1:3], part.noise, atol=1e-9)
    again = search(target, generator, noise=True)
    assert torch.equal(again.code, whole.code)
    # as the generator was trained with it
    assert whole.noise.mean(1).abs().max() < 1e-9
    assert (whole.noise.square().mean(1) - 1).abs().max() < 1e-6


def test_the_schedules_are_the_published_ones() -> None:
    config = InversionConfig()
    assert config.rate_at(0) == 0
    assert config.rate_at(25) == pytest.approx(0.05)
    assert config.rate_at(50) == config.rate_at(749) == pytest.approx(0.1)
    assert config.rate_at(875) == pytest.approx(0.05)
    assert config.rate_at(999) < 1e-5
    assert config.noise_at(0) == 0.05
    assert config.noise_at(375) == pytest.approx(0.05 / 4)
    assert config.noise_at(750) == config.noise_at(900) == 0
    w = normal(1000, 4) * 3 + 1
    start = start_of(w)
    assert start.deviation == pytest.approx(6, rel=0.05)  # 3 of each of four numbers
    assert torch.allclose(start.mean[0], w.mean(0))


def test_noise_that_holds_a_picture_is_penalised() -> None:
    sizes = [16, 1024, 1024]
    white = normal(4, sum(sizes))
    ramp = torch.linspace(-1.7, 1.7, 32).repeat(32)
    smooth = torch.cat([white[:, :1040], ramp.expand(4, -1)], dim=1)
    few, many = noise_penalty(white, sizes), noise_penalty(smooth, sizes)
    assert few.shape == (4,)
    assert many.min() > 10 * few.max()
    # by hand, of one map of 4 x 4, which has no half
    x = white[:, :16].view(4, 4, 4)
    a, b = ((x * x.roll(1, axis)).mean((1, 2)).square() for axis in (1, 2))
    assert torch.allclose(noise_penalty(white[:, :16], [16]), a + b)
    # what changes slowly shows at half the resolution, where the mean of four has twice the weight
    x = white[:, :1024].view(4, 32, 32)
    expected = torch.zeros(4).double()
    for _ in range(3):
        expected += sum((x * x.roll(1, axis)).mean((1, 2)).square() for axis in (1, 2))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).sum(dim=(2, 4)) / 2
    assert torch.allclose(noise_penalty(white[:, :1024], [1024]), expected)


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_the_distance_is_one_of_embeddings(kind: str) -> None:
    distance = ImageDistance(kind, 16)  # type: ignore[arg-type]
    one = normal(3, 1, 16, 16).clamp(-1, 1).float().requires_grad_()
    two = normal(3, 1, 16, 16, seed=1).clamp(-1, 1).float()
    with torch.no_grad():
        a, b = distance.embed(one), distance.embed(two)
    far = distance.between(a, b)
    assert torch.equal(distance.between(a, a), torch.zeros(3))
    assert far.min() > 0.05
    assert torch.allclose(distance.embed(one[1:2])[0], a[1], atol=1e-6)
    assert torch.allclose(torch.cdist(a, b).square().diagonal(), far, rtol=1e-3)
    (gradient,) = torch.autograd.grad(distance.between(distance.embed(one), b).sum(), one)
    assert gradient.flatten(1).abs().sum(1).min() > 0
    if kind == "pixels":  # of 16, 8 and 4 pixels
        x, expected = one.detach() - two, torch.zeros(3)
        for _ in range(3):
            expected += x.square().mean((1, 2, 3)) / 3
            x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
        assert torch.allclose(far, expected)
        grey = torch.zeros(1, 3, 8, 8)
        both = distance.between(distance.embed(grey), distance.embed(grey + 1))
        assert torch.allclose(both, torch.ones(1))


def test_the_nearest_of_rows_that_are_near_each_other() -> None:
    """Far from the origin, and so many that torch would multiply matrices."""
    wanted = (1000 + normal(40, 200)).float()
    made = torch.cat([wanted + 1e-2 * normal(40, 200, seed=1).float(), wanted + 1])
    expected = (wanted.double() - made[:40].double()).square().sum(1)
    assert torch.allclose(nearest(wanted, made).double(), expected, rtol=1e-4)


# ---- directions ----------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_the_direction_of_a_linear_attribute_is_found() -> None:
    w = normal(2000, WIDTH) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.5])
    truth = normal(WIDTH, seed=5)
    y = w @ truth + 0.3 * normal(2000, seed=6)
    w, y = within(w, None), within(y, None)
    assert cosine(slope(w, y), truth) > 0.99
    assert torch.allclose(slope(w, y, ridge=0), torch.linalg.lstsq(w, y[:, None]).solution[:, 0])
    assert cosine(boundary(w, y > y.median()), truth) > 0.99
    assert correlation(w @ truth, y) > 0.95
    assert correlation(w[:, 0] * 0, y) == 0
    # its gradient vanishes where it stopped
    b, is_more = boundary(w, y > 0, ridge=0.1).requires_grad_(), (y > 0).double()
    offset = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):  # the best offset for it
        (g,) = torch.autograd.grad(logistic(w, b.detach(), offset, is_more), offset)
        offset = (offset - 4 * g / len(w)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logistic(w, b, offset, is_more), b)
    assert gradient.norm() < 1e-3 * len(w) ** 0.5


def logistic(w: Tensor, b: Tensor, offset: Tensor, y: Tensor) -> Tensor:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(w @ b + offset, y, reduction="sum")
    return loss + 0.5 * 0.1 * w.square().sum() / w.shape[1] * b.square().sum()


def test_classes_are_set_aside() -> None:
    labels = [i % 2 for i in range(1000)]
    shift = torch.tensor(labels)[:, None] * 10.0
    w = normal(1000, WIDTH) + shift
    y = w[:, 0] - 3 * shift[:, 0]  # between classes it falls, within them it rises
    assert slope(within(w, None), within(y, None)) @ torch.ones(WIDTH).double() < 0
    inside = within(w, labels)
    assert inside[::2].mean().abs() < 1e-9
    assert cosine(slope(inside, within(y, labels)), torch.eye(WIDTH).double()[0]) > 0.99


def test_what_is_kept_does_not_change() -> None:
    vector, *others = normal(3, WIDTH)
    left = without(vector, others)
    assert max(abs(float(left @ other)) for other in others) < 1e-12
    assert float(left @ vector) > 0
    assert without(vector, []) is vector
    with pytest.raises(ConfigError, match="nothing is left"):
        without(others[0] + others[1], others)


def test_components_and_units() -> None:
    turn = torch.linalg.qr(normal(WIDTH, WIDTH, seed=7))[0]
    deviations = torch.tensor([5.0, 3, 2, 1, 0.5, 0.1]).double()
    w = within(normal(5000, WIDTH) * deviations @ turn, None)
    vector, share = component(w, 2)
    assert abs(cosine(vector, turn[1])) > 0.999
    assert share == pytest.approx(9 / float(deviations.square().sum()), rel=0.1)
    assert vector[vector.abs().argmax()] > 0
    with pytest.raises(ConfigError, match="components 1 to 6"):
        component(w, 7)
    direction = in_deviations("second", 7 * vector, w)
    assert direction.unit == pytest.approx(3, rel=0.03)
    styles = normal(2, LAYERS, WIDTH)
    moved = direction.moved(styles, -2.0, slice(1, 3))
    assert torch.equal(moved[:, 0], styles[:, 0])
    expected = styles[:, 1:] - 2 * direction.unit * vector
    assert torch.allclose(moved[:, 1:], expected)
    way = between_classes("a to b", styles[0, 0], styles[1, 0])
    assert torch.allclose(way.moved(styles, 1.0)[0, 0], styles[1, 0])
    assert isinstance(way, Direction)


# ---- measures ------------------------------------------------------------------------------------


def test_measures_of_a_bar() -> None:
    image = torch.full((2, 1, 40, 40), -1.0)
    image[0, 0, 10:20, 5:35] = 1  # 10 high and 30 wide, in the middle
    image[1, 0, 0:40, 0:20] = 0  # the left half, half as bright
    found = {name: measure(image).tolist() for name, measure in MEASURES.items()}
    assert found["brightness"] == pytest.approx([300 / 1600, 0.25])
    assert found["width"] == pytest.approx([0.75, 0.5], rel=2e-3)
    assert found["height"] == pytest.approx([0.25, 1.0], rel=6e-3)
    assert found["symmetry"] == pytest.approx([1, 0])
    share = 300 / 1600
    assert found["contrast"] == pytest.approx([(share * (1 - share)) ** 0.5, 0.25])
    red = torch.full((1, 3, 4, 4), -1.0)
    red[:, 0] = 1
    assert MEASURES["brightness"](red).item() == pytest.approx(0.299)
    black = torch.full((1, 1, 4, 4), -1.0)
    assert all(measure(black).isfinite().all() for measure in MEASURES.values())
    near = nearness(image[0], image[1])
    assert near(image).tolist() == [0, 1]
    assert near(image.mean(0, keepdim=True)).item() == pytest.approx(0.5)
