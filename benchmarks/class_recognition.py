"""Are the samples drawn for a class recognised as that class? Beside real images, class by class.

    genus sample RUN --n 1000 --out samples.npz
    python benchmarks/class_recognition.py samples.npz [--json] [--quick]

The judge knows real images only: multinomial logistic regression on EffLite0 features of 5,000
real training images. ``samples.npz`` holds ``images`` (N, C, H, W) uint8 and ``labels`` (N,).
Without a file, real training images that the judge has not seen take the samples' place: a control
whose ratios must be near 1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.stream import DataConfig, iterate_once, read_info
from genus.errors import EvaluationError
from genus.evaluate.features import Extractor, efficientnet_lite0

GOAL = 0.8
"""Share of the real images' accuracy at which we call a class recognisable."""


@dataclass(frozen=True)
class Recognition:
    """Accuracy of the judge on one class."""

    label: int
    count: int
    samples: float
    real: float


def class_recognition(
    samples: Tensor,
    labels: Tensor,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    extractor: Extractor,
) -> list[Recognition]:
    """Recognition of each class that ``labels`` (N,) has, for samples (N, C, H, W) uint8.

    ``train`` and ``test`` are real (images, labels) of the same size. Raises EvaluationError where
    a class has no real image.
    """
    images, classes = train
    judge = fit(extractor.all([images], len(images)), classes)
    guess = judge(extractor.all([samples], len(samples)))
    guess_real = judge(extractor.all([test[0]], len(test[0])))
    rows = []
    for label in sorted(set(labels.tolist())):
        own, real = labels == label, test[1] == label
        if not real.any() or not (classes == label).any():
            raise EvaluationError(f"class {label} has no real images to judge by")
        rows.append(
            Recognition(
                label=label,
                count=int(own.sum()),
                samples=float((guess[own] == label).double().mean()),
                real=float((guess_real[real] == label).double().mean()),
            )
        )
    return rows


class Judge:
    """Multinomial logistic regression on standardised features (N, D)."""

    def __init__(self, features: Tensor, classes: int) -> None:
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        self.weight = torch.zeros(classes, features.shape[1], requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)

    def logits(self, features: Tensor) -> Tensor:
        """(N, classes)."""
        return F.linear((features - self.mean) / self.std, self.weight, self.bias)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """The likeliest class (N,)."""
        return self.logits(features).argmax(1)


def fit(features: Tensor, labels: Tensor, penalty: float = 1e-3) -> Judge:
    """Minimise the mean cross-entropy + penalty |W|^2: convex, so there is nothing to tune."""
    judge = Judge(features, int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(
        [judge.weight, judge.bias], max_iter=200, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(judge.logits(features), labels)
        value = value + penalty * judge.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return judge


def real_images(url: str, size: int, count: int, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, C, size, size) and labels (count,) in stored order, after ``skip`` others."""
    config = DataConfig(url=url, size=size)
    parts = list(iterate_once(config, 500, limit=skip + count))
    images = torch.cat([part["image"] for part in parts])[skip:]
    return images, torch.cat([part["label"] for part in parts])[skip:]


def read_samples(path: Path) -> tuple[Tensor, Tensor]:
    """``images`` (N, C, H, W) uint8 and ``labels`` (N,) of what ``genus sample`` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        if not {"images", "labels"} <= set(arrays):
            raise EvaluationError(f"{path} holds {sorted(arrays)}, not images and labels")
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "samples", nargs="?", type=Path, help=".npz; default: real images, a control"
    )
    parser.add_argument("--train", default="fashion-mnist/train", help="real images to learn from")
    parser.add_argument("--test", default="fashion-mnist/test", help="real images to compare with")
    parser.add_argument("--border", type=int, default=2, help="pixels of padding around the images")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer images: seconds, coarse")
    options = parser.parse_args()

    learn, compare, judged = (1000, 500, 500) if options.quick else (5000, 2000, 10000)
    if options.samples is not None:
        samples, labels = read_samples(options.samples)
        samples, labels = samples[:judged], labels[:judged]
        size = samples.shape[-1]
    else:
        size = read_info(DataConfig(url=options.train)).resolution + 2 * options.border
        samples, labels = real_images(options.train, size, min(judged, 2000), skip=learn)
    rows = class_recognition(
        samples,
        labels,
        real_images(options.train, size, learn),
        real_images(options.test, size, compare),
        efficientnet_lite0(border=options.border),
    )
    names = read_info(DataConfig(url=options.train)).class_names
    for row in rows:
        ratio = row.samples / row.real if row.real else float("nan")
        name = names[row.label] if row.label < len(names) else str(row.label)
        if options.json:
            line = {
                "row": f"recognised: {name}",
                "ours": round(row.samples, 4),
                "peer": round(row.real, 4),
                "peer_name": "real test images",
                "ratio": round(ratio, 4) if row.real else None,
                "goal": GOAL,
            }
            print(json.dumps(line))
        else:
            counted = f"{row.count} samples"
            print(f"{name:<14} {row.samples:6.1%}  (real test images {row.real:6.1%})  {counted}")


if __name__ == "__main__":
    main()
