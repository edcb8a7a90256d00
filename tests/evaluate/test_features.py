"""Feature extractors: what they compute, and that real images order as they must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.data.stream import DataConfig, iterate_once
from genus.errors import EvaluationError
from genus.evaluate.features import Extractor, efficientnet_lite0, inception, module_file
from genus.evaluate.frechet import frechet_distance

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

FASHION = Path(__file__).parents[1] / "data" / "fashion-1000"


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return efficientnet_lite0(border=2)


def random_images(count: int, channels: int, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_shape_range_and_the_weights_that_every_figure_rests_on(lite0: Extractor) -> None:
    features = lite0(random_images(3, 3))
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert 0 <= features.min() < features.max() <= 6
    assert lite0.weights_sha256.startswith("579344248a93e230")
    assert "border of 2 px cut" in lite0.preprocessing
    assert "bilinear to 64x64, antialias=False" in lite0.preprocessing


def test_photographs_are_recognised() -> None:
    # A wrong normalisation or a half-loaded network would still give "features".
    from sklearn.datasets import load_sample_images

    extractor = efficientnet_lite0(resolution=224)
    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    features = extractor(photographs[..., :426, 100:526])
    classes = extractor.module.network._fc(features).argmax(dim=1)
    assert classes.tolist() == [698, 985]  # ImageNet's palace and daisy; (x / 255) gives no daisy


def test_grey_is_rgb_with_equal_channels(lite0: Extractor) -> None:
    grey = random_images(4, 1)
    assert torch.equal(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)))


def test_the_same_again_and_independent_of_the_rest_of_the_batch(lite0: Extractor) -> None:
    images = random_images(7, 1)
    together = lite0(images)
    assert torch.equal(together, lite0(images))
    apart = torch.cat([lite0(images[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(apart, together, rtol=0, atol=2e-5)
    torch.testing.assert_close(lite0.all([images[:4], images[4:]], 7, batch=3), together,
                               rtol=0, atol=2e-5)  # fmt: skip


def test_training_mode_statistics_and_gradients_stay_out(lite0: Extractor) -> None:
    assert not lite0.module.training
    assert not lite0(random_images(2, 1)).requires_grad


def test_the_border_is_cut_before_the_resize(lite0: Extractor) -> None:
    inner = random_images(3, 1, size=28)
    framed = F.pad(inner, (2, 2, 2, 2), value=77)
    assert torch.equal(lite0(framed), efficientnet_lite0(border=0)(inner))


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_resize_is_bilinear_without_antialias() -> None:
    down = Extractor("pixels", "", Pixels(), resolution=2, mean=127.0, std=128.0)
    image = torch.tensor([[[[0, 100], [50, 250]]]], dtype=torch.uint8)
    blocks = image.repeat_interleave(3, 2).repeat_interleave(3, 3)
    blocks[..., 0::3, :] = blocks[..., :, 0::3] = 9  # only the middle of a 3x3 block counts
    expected = (image.float().flatten() - 127) / 128
    torch.testing.assert_close(down(blocks)[0], expected.repeat(3))

    up = Extractor("pixels", "", Pixels(), resolution=4)
    rows = torch.tensor([0.0, 25, 75, 100])  # half-pixel centres: 3/4 and 1/4 of the neighbours
    image = torch.tensor([[[[0, 100], [0, 100]]]], dtype=torch.uint8)
    torch.testing.assert_close(up(image)[0], rows.repeat(4).repeat(3))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 32, 32),
        random_images(2, 2),
        random_images(2, 3)[0],
        random_images(1, 1, 4),
    ],
)
def test_what_is_no_batch_of_levels_is_refused(lite0: Extractor, images: Tensor) -> None:
    with pytest.raises(EvaluationError):
        lite0(images)


def test_too_few_images_and_no_more_read_than_needed(lite0: Extractor) -> None:
    with pytest.raises(EvaluationError, match="only 3 images where 4"):
        lite0.all([random_images(3, 1)], 4)

    def endless():  # type: ignore[no-untyped-def]
        yield random_images(3, 1)
        yield random_images(3, 1, seed=1)
        raise AssertionError("read too far")

    assert len(lite0.all(endless(), 5)) == 5


class Toy(nn.Module):
    """A stand-in for a user's feature network: levels in, two features out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.float().mean((1, 2, 3)), x.float().amax((1, 2, 3))], dim=1)


class ToyInception(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        y = x.float().mean((2, 3))
        return y if return_features else y.sum(dim=1, keepdim=True)


def test_a_users_torchscript_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.pt"
    torch.jit.save(torch.jit.script(Toy()), path)
    extractor = module_file(path, name="Toy")
    images = random_images(5, 1)
    expected = torch.stack([images.float().mean((1, 2, 3)), images.float().amax((1, 2, 3))], dim=1)
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.name == "Toy"
    assert len(extractor.weights_sha256) == 64
    assert "uint8 levels" in extractor.preprocessing


def test_the_inception_file_is_asked_for_its_features(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(ToyInception()), path)
    images = random_images(5, 3)
    torch.testing.assert_close(inception(path)(images), images.float().mean((2, 3)))


def test_a_users_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "toy.pt2"
    batch = torch.export.Dim("batch")
    images = random_images(5, 3)
    program = torch.export.export(Toy(), (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    torch.testing.assert_close(module_file(path, name="Toy")(images), Toy()(images))


def test_no_feature_module_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no feature module at"):
        module_file(tmp_path / "none.pt", name="X")
    (tmp_path / "text.pt").write_text("no module")
    with pytest.raises(EvaluationError, match="neither TorchScript"):
        module_file(tmp_path / "text.pt", name="X")


def test_real_images_are_nearer_than_half_the_classes_and_those_than_blur(lite0: Extractor) -> None:
    batches = list(iterate_once(DataConfig(url=str(FASHION), size=32), 500))
    images = torch.cat([batch["image"] for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    real = images[1::2][:300]
    blurred = F.avg_pool2d(F.pad(real.float(), (2,) * 4), 5, stride=1).round().to(torch.uint8)
    reference = lite0.all([images[0::2]], 300)
    features = {"real": lite0.all([real], 300), "blur": lite0.all([blurred], 300)}
    features["half"] = features["real"][labels[1::2][:300] < 5]
    # every fourth feature: the order is the same, and the eigenvalues cost seconds less
    distance = {k: frechet_distance(reference[:, ::4], f[:, ::4]) for k, f in features.items()}
    assert distance["real"] * 1.5 < distance["half"] < distance["blur"] / 1.2, distance
