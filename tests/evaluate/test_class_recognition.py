"""The judge of class-conditional samples: right on what it knows, wrong on what is mislabelled."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genus.errors import EvaluationError
from genus.evaluate.features import Extractor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from class_recognition import class_recognition, read_samples


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


EXTRACTOR = Extractor("Pixels", "", Pixels(), resolution=0, std=255.0)


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright quadrant; which one is the class 0..3."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = label // 2 * 4, label % 2 * 4
        image[:, y : y + 4, x : x + 4] += 120
    return images, labels


def test_right_samples_are_recognised_and_swapped_classes_are_not() -> None:
    train, test = squares(200, 0), squares(80, 1)
    images, labels = squares(40, 2)
    rows = class_recognition(images, labels, train, test, EXTRACTOR)
    assert [(r.label, r.count, r.samples, r.real) for r in rows] == [
        (label, 10, 1.0, 1.0) for label in range(4)
    ]
    swapped = labels.where(labels > 1, 1 - labels)
    rows = class_recognition(images, swapped, train, test, EXTRACTOR)
    assert [r.samples for r in rows] == [0, 0, 1, 1]
    assert [r.real for r in rows] == [1, 1, 1, 1]


def test_a_class_without_real_images() -> None:
    images, labels = squares(40, 2)
    with pytest.raises(EvaluationError, match="class 4 has no real images"):
        class_recognition(images, labels + 1, squares(80, 0), squares(80, 1), EXTRACTOR)


def test_samples_from_npz(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    path = tmp_path / "samples.npz"
    np.savez(path, images=images.numpy(), labels=np.array([2, 0, 1]))
    read, labels = read_samples(path)
    assert torch.equal(read, images)
    assert labels.tolist() == [2, 0, 1]
    np.savez(path, images=images.numpy())
    with pytest.raises(EvaluationError, match="not images and labels"):
        read_samples(path)
