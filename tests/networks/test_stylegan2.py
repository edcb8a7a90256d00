"""StyleGAN2's parts against straightforward versions of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genus.networks.filtering import downsample, low_pass, upsample
from genus.networks.gan.discriminator import Discriminator, with_minibatch_deviation
from genus.networks.gan.layers import Conv, Dense
from genus.networks.gan.mapping import Mapping
from genus.networks.gan.modulated import modulated_conv
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.networks.gan.synthesis import Synthesis

SMALL = StyleGAN2Config(
    latent=8, width=8, mapping_layers=2, channels_base=64, channels_max=8, label_layers=2
)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sample_by_sample(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool, gain: float
) -> Tensor:
    """Each sample's weights by the equations 1 and 3 of Karras et al. 2020, then convolved."""
    rows = []
    for sample, scale in zip(x, style, strict=True):
        own = weight * scale.view(1, -1, 1, 1)
        if demodulate:
            own = own / (own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            wide = F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2)
            row = 4 * low_pass(wide, padding=(1, 1))
        else:
            row = F.conv2d(sample[None], own, padding=weight.shape[-1] // 2)
        rows.append(gain * row)
    return torch.cat(rows)


@pytest.mark.parametrize("grouped", [False, True], ids=["scaled", "grouped"])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize(("up", "kernel"), [(False, 3), (True, 3), (False, 1)])
def test_modulated_convolution_is_sample_by_sample(
    grouped: bool, demodulate: bool, up: bool, kernel: int
) -> None:
    """Values and the gradients of all three inputs."""
    x, weight = random(3, 5, 6, 6), random(4, 5, kernel, kernel, seed=1)
    style = random(3, 5, seed=2) + 1
    inputs = [value.requires_grad_() for value in (x, weight, style)]
    found = modulated_conv(
        *inputs, demodulate=demodulate, up=up, grouped=grouped, gain=math.sqrt(2)
    )
    expected = sample_by_sample(x, weight, style, demodulate, up, math.sqrt(2))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = random(*expected.shape, seed=3)
    ours = torch.autograd.grad((found * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


def test_both_ways_agree_in_second_derivatives() -> None:
    def penalty(grouped: bool) -> tuple[Tensor, ...]:
        x, weight = random(2, 3, 4, 4).requires_grad_(), random(3, 3, 3, 3, seed=1).requires_grad_()
        style = (random(2, 3, seed=2) + 1).requires_grad_()
        y = modulated_conv(x, weight, style, up=True, grouped=grouped)
        (gradient,) = torch.autograd.grad(y.square().sum(), style, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, weight, style])

    for ours, theirs in zip(penalty(False), penalty(True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_demodulated_output_has_unit_variance() -> None:
    """Whatever the style: that is what the demodulation is for."""
    x, weight, style = random(4, 64, 16, 16), random(64, 64, 3, 3, seed=1), random(4, 64, seed=2)
    inner = modulated_conv(x, weight, 5 * style)[:, :, 1:-1, 1:-1]
    assert (inner.std(dim=(1, 2, 3)) - 1).abs().max() < 0.05


@pytest.mark.parametrize("grouped", [False, True], ids=["scaled", "grouped"])
@pytest.mark.parametrize("size", [4.0, 30.0, 1e4])
@pytest.mark.parametrize("up", [False, True])
def test_float16_holds_large_styles(up: bool, size: float, grouped: bool) -> None:
    """Of 512 channels, whose squares' sum is above float16's 65504 from styles of 4 on, and whose
    sum of products is from 30 on; and the derivatives of a penalty on the slopes."""
    x, weight = 10 * random(2, 512, 4, 4).float(), random(8, 512, 3, 3, seed=1).float()
    style = size * (1 + 0.1 * random(2, 512, seed=2).float())
    inputs = [value.requires_grad_() for value in (x, weight, style)]
    found = []
    for half in (True, False):
        with torch.autocast("cpu", torch.float16, enabled=half):
            # a layer's output, so its style, is in float16
            y = modulated_conv(
                x.half() if half else x, weight, style.half() if half else style,
                up=up, grouped=grouped,
            )  # fmt: skip
        assert y.dtype == (torch.float16 if half else torch.float32)
        (slope,) = torch.autograd.grad(y.float().square().mean(), style, create_graph=True)
        second = torch.autograd.grad(slope.square().sum() + y.float().sum(), inputs)
        assert all(bool(value.isfinite().all()) for value in (y, slope, *second))
        found.append(y.detach().float())
    half_rms, rms = (float(y.square().mean().sqrt()) for y in found)
    assert half_rms == pytest.approx(rms, rel=0.02)
    assert float((found[0] - found[1]).square().mean().sqrt()) <= 0.02 * rms
    assert 5 < rms < 15


def test_outputs_of_nothing_are_zero_in_float16() -> None:
    """Not zero times infinity."""
    weight = random(3, 4, 3, 3, seed=1).float()
    weight[1] = 0
    style = torch.tensor([[1.0, -2, 3, 1], [0, 0, 0, 0]]).half()
    with torch.autocast("cpu", torch.float16):
        y = modulated_conv(random(2, 4, 4, 4).half(), weight, style)
    assert y.isfinite().all()
    assert y.flatten(2).any(2).tolist() == [[True, False, True], [False] * 3]


def test_equalised_layers_scale_at_run_time() -> None:
    """Unit-variance parameters, and outputs as of He's initialisation."""
    torch.manual_seed(0)
    slow = Dense(256, 256, active=False, rate=0.01).double()
    assert abs(float(slow.weight.detach().std()) - 100) < 2
    assert abs(float(slow(random(512, 256)).detach().std()) - 1) < 0.03
    conv = Conv(64, 64, 3).double()
    assert abs(float(conv.weight.detach().std()) - 1) < 0.02
    inner = conv(random(2, 64, 16, 16))[:, :, 1:-1, 1:-1].detach()
    # E[(sqrt(2) leaky_relu(n))^2] = 1 + 0.2^2
    assert abs(float(inner.square().mean()) - 1.04) < 0.05


def test_gain_on_the_weights_is_gain_on_the_output() -> None:
    conv = Conv(3, 4, 3, gain=0.5, clamp=0.9).double()
    with torch.no_grad():
        conv.bias.copy_(random(4, seed=5))
    x = random(2, 3, 8, 8, seed=6)
    y = F.conv2d(x, conv.weight / math.sqrt(27), conv.bias, padding=1)
    expected = (F.leaky_relu(y, 0.2) * math.sqrt(2) * 0.5).clamp(-0.45, 0.45)
    torch.testing.assert_close(conv(x), expected)
    assert (expected.abs() == 0.45).any()


def test_downsampling_convolution_filters_first() -> None:
    x = random(2, 3, 8, 8)
    one = Conv(3, 5, 1, down=True, bias=False, active=False).double()
    expected = F.conv2d(downsample(x), one.weight / math.sqrt(3))
    torch.testing.assert_close(one(x), expected)
    three = Conv(3, 5, 3, down=True, bias=False, active=False).double()
    # The filter of the whole plane, of which the convolution takes every second pixel.
    plane = F.conv2d(low_pass(x, padding=(2, 2)), three.weight / math.sqrt(27))
    torch.testing.assert_close(three(x), plane[:, :, ::2, ::2])


def test_mapping_sees_directions_only() -> None:
    mapping = Mapping(8, 16, classes=0, layers=2).double()
    z = random(4, 8)
    torch.testing.assert_close(mapping(z), mapping(3 * z), rtol=1e-6, atol=1e-6)
    assert (mapping(z) - mapping(-z)).abs().max() > 0.1


# -- synthesis ---------------------------------------------------------------------------------


def synthesis(config: StyleGAN2Config = SMALL) -> Synthesis:
    torch.manual_seed(0)
    network = config.build((3, 16, 16), 0)["synthesis"].double()
    assert isinstance(network, Synthesis)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * random(*parameter.shape, seed=parameter.numel()))
    return network


def test_each_noise_belongs_to_its_layer() -> None:
    """16 + 2 * 64 + 2 * 256 numbers; those of the last layer move pixels near their own only."""
    network = synthesis()
    assert (network.layers, network.noise_size) == (6, 16 + 2 * 64 + 2 * 256)
    styles, noise = random(1, 6, 8), torch.zeros(1, network.noise_size, dtype=torch.float64)
    torch.testing.assert_close(network(styles, noise), network(styles))
    base = network(styles)
    for place, (row, column) in {-256: (0, 0), -1: (15, 15), -256 + 16 * 3 + 5: (3, 5)}.items():
        moved = noise.clone()
        moved[0, place] = 1.0
        changed = (network(styles, moved) - base).abs().sum(dim=(0, 1)) > 1e-9
        assert changed.nonzero().tolist() == [[row, column]]
    for start in (0, 16, 16 + 64, 16 + 128):
        moved = noise.clone()
        moved[0, start] = 1.0
        changed = (network(styles, moved) - base).abs().sum(dim=(0, 1)) > 1e-9
        assert changed[0, 0]
        assert not changed.all() or start == 0


def test_each_style_belongs_to_its_layers() -> None:
    """Only the last style changes the image without changing any features: it is affine in it."""
    network = synthesis()
    styles = random(2, 6, 8)
    base = network(styles)
    for layer in range(6):
        other = styles.clone()
        other[:, layer] += 1
        assert (network(other) - base).abs().max() > 1e-6
    step = torch.zeros_like(styles)
    step[:, -1] = random(2, 8, seed=4)
    once, twice = network(styles + step) - base, network(styles + 2 * step) - base
    torch.testing.assert_close(twice, 2 * once)


def test_skip_sums_images_of_all_resolutions() -> None:
    """With the images above 4 pixels silenced, what is left is the first one upsampled twice."""
    network = synthesis()
    first: list[Tensor] = []
    network.blocks[0].to_image.register_forward_hook(lambda *call: first.append(call[2]))
    with torch.no_grad():
        for block in network.blocks[1:]:
            block.to_image.weight.zero_()
            block.to_image.bias.zero_()
    image = network(random(2, 6, 8))
    torch.testing.assert_close(image, upsample(upsample(first[0])))


def test_residual_generator_adds_the_upsampled_input() -> None:
    network = synthesis(replace(SMALL, generator="resnet"))
    seen: list[Tensor] = []
    network.blocks[1].register_forward_hook(lambda *call: seen.append(call[2][0]))
    before: list[Tensor] = []
    network.blocks[0].register_forward_hook(lambda *call: before.append(call[2][0]))
    with torch.no_grad():
        network.blocks[1].conv1.weight.zero_()
        network.blocks[1].conv1.bias.zero_()
    network(random(2, 6, 8))
    skip = network.blocks[1].skip.weight / math.sqrt(8) * math.sqrt(0.5)
    torch.testing.assert_close(seen[0], upsample(F.conv2d(before[0], skip)))


def test_filtered_synthesis_takes_no_noise_and_differs() -> None:
    network = synthesis(replace(SMALL, filtered=True))
    assert network.noise_size == 0
    assert not [name for name, _ in network.named_parameters() if "strength" in name]
    styles = random(2, 6, 8)
    torch.testing.assert_close(network(styles, torch.zeros(2, 0)), network(styles))
    plain = synthesis()
    plain.load_state_dict(network.state_dict(), strict=False)
    assert (plain(styles) - network(styles)).abs().max() > 1e-3


def test_wrong_sizes_are_refused() -> None:
    network = synthesis()
    with pytest.raises(ValueError, match=r"styles are \(B, 6, W\)"):
        network(random(2, 5, 8))
    with pytest.raises(ValueError, match=r"noise is \(B, 656\)"):
        network(random(2, 6, 8), random(2, 655))


# -- discriminator -----------------------------------------------------------------------------


def test_minibatch_deviation_is_of_consecutive_rows() -> None:
    x = random(6, 4, 3, 3)
    y = with_minibatch_deviation(x, 3)
    assert torch.equal(y[:, :4], x)
    for start in (0, 3):
        group = x[start : start + 3]
        expected = group.std(dim=0, unbiased=False).mean()
        assert (y[start : start + 3, 4] - expected).abs().max() < 1e-6


def test_minibatch_deviation_of_few_rows() -> None:
    x = random(5, 4, 3, 3)
    torch.testing.assert_close(with_minibatch_deviation(x, 8), with_minibatch_deviation(x, 5))
    assert with_minibatch_deviation(x[:1], 8)[:, 4].abs().max() < 1e-3
    with pytest.raises(ValueError, match="looks at 4 rows together, and 5 rows"):
        with_minibatch_deviation(x, 4)


def test_micro_batches_of_whole_groups_give_the_same_logits() -> None:
    network = discriminator(SMALL)
    x = random(8, 3, 16, 16)
    halves = torch.cat([network(x[:4]), network(x[4:])])
    torch.testing.assert_close(network(x), halves, rtol=1e-11, atol=1e-11)
    swapped = torch.cat([network(x[::2]), network(x[1::2])])
    assert (network(x)[::2] - swapped[:4]).abs().max() > 1e-6


def discriminator(config: StyleGAN2Config, classes: int = 0) -> Discriminator:
    torch.manual_seed(0)
    network = config.build((3, 16, 16), classes)["discriminator"].double()
    assert isinstance(network, Discriminator)
    return network


@pytest.mark.parametrize("form", ["orig", "skip"])
def test_other_forms_of_the_discriminator(form: str) -> None:
    network = discriminator(replace(SMALL, discriminator=form))  # type: ignore[arg-type]
    assert not [name for name, _ in network.named_parameters() if ".skip." in name]
    readers = [name for name, _ in network.named_modules() if name.endswith("from_image")]
    assert len(readers) == (3 if form == "skip" else 1)
    assert network(random(4, 3, 16, 16)).shape == (4,)


def test_conditional_logit_is_a_projection() -> None:
    """Linear in the mapped label: with the map of all labels one vector, the label is nothing."""
    network = discriminator(SMALL, classes=3)
    x, label = random(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    assert (network(x, label) - network(x, (label + 1) % 3)).abs().max() > 1e-6
    assert network.label is not None
    network.label.register_forward_hook(lambda *call: torch.ones_like(call[2]))
    features: list[Tensor] = []
    network.out.register_forward_hook(lambda *call: features.append(call[2]))
    logits = network(x, label)
    torch.testing.assert_close(logits, features[0].sum(dim=1) / math.sqrt(8))
