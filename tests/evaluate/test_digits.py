"""The classifier of digits: trained once, the same again, checked when it is read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from genus.data.pack import from_arrays, pack_source
from genus.data.stream import DataConfig, iterate_once
from genus.errors import EvaluationError
from genus.evaluate import digits
from genus.evaluate.digits import DigitClassifier, digit_classifier
from genus.evaluate.stacked_modes import StackedDigitModes


@pytest.fixture
def easy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Easy digits in the place of MNIST's: a bright spot whose place tells. Root of all data."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 50)):
        labels = np.arange(count) % 10
        images = generator.integers(0, 60, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = 4 + 10 * (label // 5), 3 + 5 * (label % 5)
            image[row : row + 5, column : column + 4] = 255
        source = from_arrays(images, labels, classes=tuple("0123456789"))
        pack_source(source, tmp_path / "easy" / split, shard_size=100, shuffle_seed=0)
    monkeypatch.setattr(digits, "DATA", str(tmp_path / "easy"))
    monkeypatch.setattr(digits, "EPOCHS", 6)
    monkeypatch.setattr(digits, "BATCH", 20)
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def same(one: DigitClassifier, two: DigitClassifier) -> bool:
    a, b = one.module.state_dict(), two.module.state_dict()
    return one.sha256 == two.sha256 and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_and_is_trained_once(easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = digit_classifier()
    assert torch.equal(torch.get_rng_state(), state)  # a run that asks for it draws as before
    assert torch.get_num_threads() == threads
    assert (first.correct, first.tested) == (50, 50)
    assert first.accuracy == (1.0, 0.0)
    assert not any(weight.requires_grad for weight in first.module.parameters())

    (path,) = (easy / "digits").glob("*.safetensors")
    path.rename(easy / "kept")
    torch.manual_seed(4)
    assert same(digit_classifier(), first)  # trained again it is the same, to the bit

    def never(*arguments: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(digits, "_train", never)
    assert same(digit_classifier(), first)


def test_a_damaged_file_or_another_recipe_is_not_taken(
    easy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digit_classifier()
    (path,) = (easy / "digits").glob("*.safetensors")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), whole[:-10], b"", b"no safetensors at all"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="made anew"):
            assert same(digit_classifier(), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(digits, "RECIPE", "another")
        digit_classifier()
    assert len([*(easy / "digits").glob("*.safetensors")]) == 2


def test_what_are_no_digits(easy: Path) -> None:
    classifier = digit_classifier()
    for bad in (torch.zeros(1, 1, 28, 28), torch.zeros(1, 3, 28, 28, dtype=torch.uint8)):
        with pytest.raises(EvaluationError, match=r"uint8 images \(N, 1, 28, 28\)"):
            classifier(bad)
    assert classifier(torch.zeros(0, 1, 28, 28, dtype=torch.uint8)).shape == (0, 10)


@pytest.mark.slow
def test_real_digits_and_their_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 97 % of MNIST's test digits; real stacks cover all modes as evenly as chance."""
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    classifier = digit_classifier()
    assert classifier.accuracy[0] > 0.97
    count = StackedDigitModes(classifier)
    batches = iterate_once(DataConfig(url="stacked-mnist/test"), 500, limit=10_000)
    parts = [count(batch["image"]) for batch in batches]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert total.covered >= 995  # exp(-10) of 1000 modes are missed by chance
    assert total.kl == pytest.approx(999 / 20_000, rel=0.2)
