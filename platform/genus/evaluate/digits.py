"""Which digits an image shows: a small classifier of MNIST digits, trained here when first needed.

It is a gauge, not a run: half a minute on one core from one seed, no ranks, no resume, no averages.
So it is not trained by ``genus.loop``. Its weights lie in data_root()/digits and are the same for
all evaluations of a machine; another processor or another torch may round them otherwise, which
their hash tells.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genus.atomic import replacing
from genus.data import datasets
from genus.data.manifest import Manifest
from genus.data.root import data_root, locked
from genus.data.stream import DataConfig, iterate_once
from genus.draws import seed_of
from genus.errors import EvaluationError

DATA, SIDE = "mnist-5k", 28
EPOCHS, BATCH, RATE, SHIFT = 20, 100, 4e-3, 2
RECIPE = f"DigitNet 1: {EPOCHS} epochs of {BATCH}, Adam {RATE} one-cycle, shifts of {SHIFT} px"
"""Whatever changes the weights is in it: the cached ones are known by it."""


class DigitNet(nn.Module):
    """Grey images (B, 1, 28, 28) in [0, 1] to logits (B, 10); 215,370 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, padding=2)
        self.second = nn.Conv2d(16, 32, 5, padding=2)
        self.hidden = nn.Linear(32 * 7 * 7, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        logits: Tensor = self.out(F.relu(self.hidden(x.flatten(1))))
        return logits


@dataclass(frozen=True, eq=False)
class DigitClassifier:
    """The trained network and what is known of it."""

    module: DigitNet = field(repr=False)
    sha256: str
    """Hash of the weights."""
    correct: int
    """Test digits that it names rightly."""
    tested: int

    @property
    def accuracy(self) -> tuple[float, float]:
        """The share of test digits that it names rightly, and its standard error."""
        share = self.correct / self.tested
        return share, math.sqrt(share * (1 - share) / self.tested)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 1000) -> Tensor:
        """(N, 10) logits, on the host, of uint8 grey images (N, 1, 28, 28)."""
        if images.dtype != torch.uint8 or images.shape[1:] != (1, SIDE, SIDE):
            raise EvaluationError(
                f"digits are uint8 images (N, 1, {SIDE}, {SIDE}), not {images.dtype} "
                f"{tuple(images.shape)}"
            )
        device = self.module.out.weight.device
        with torch.autocast(device.type, enabled=False):
            split = torch.split(images, batch)
            parts = [self.module(part.to(device).float() / 255).cpu() for part in split]
        return torch.cat(parts) if parts else torch.empty(0, 10)


def digit_classifier(device: torch.device | str = "cpu") -> DigitClassifier:
    """The classifier, from data_root()/digits or trained now, which takes half a minute.

    Several processes may ask at once: one trains. DataError where the digits can't be had.
    """
    manifest = Manifest.load(datasets.resolve(DATA))
    key = json.dumps([RECIPE, manifest.fingerprint()])
    folder = data_root() / "digits"
    path = folder / f"digits-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if path.exists():
            try:
                return _read(path, key, device)
            except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
                warnings.warn(f"digit classifier {path} is made anew: {error}", stacklevel=2)
        module = _train(*_digits(DATA))
        test, label = _digits(f"{DATA}/test")
        fresh = DigitClassifier(module, _hash(module), 0, len(test))
        correct = int((fresh(test).argmax(1) == label).sum())
        known = {"key": key, "sha256": fresh.sha256, "correct": str(correct)}
        with replacing(path) as temporary:
            save_file(module.state_dict(), temporary, known | {"tested": str(len(test))})
        return _read(path, key, device)


def _read(path: Path, key: str, device: torch.device | str) -> DigitClassifier:
    """The stored classifier, or ValueError saying why it can't be the one that is asked for."""
    with safe_open(path, framework="pt") as file:
        known = file.metadata() or {}
        # copies: tensors of a file that is overwritten would change with it
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if known.get("key") != key:
        raise ValueError("the file is of something else")
    with torch.device("meta"):  # whose weights draw no random numbers
        module = DigitNet()
    module.load_state_dict(weights, assign=True)
    if _hash(module) != known["sha256"]:
        raise ValueError("the file is damaged")
    module.eval().requires_grad_(False).to(device)
    return DigitClassifier(module, known["sha256"], int(known["correct"]), int(known["tested"]))


def _digits(url: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 1, 28, 28) and their digits (N,)."""
    batches = [*iterate_once(DataConfig(url=url), 1000)]
    return torch.cat([b["image"] for b in batches]), torch.cat([b["label"] for b in batches])


def _train(images: Tensor, labels: Tensor) -> DigitNet:
    """On the host, by one thread, so that sums are added in one order; random numbers are those of
    a generator of its own."""
    generator = torch.Generator().manual_seed(seed_of("digits"))
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("digits"))
        module = DigitNet()
        weights = [*module.parameters()]
        steps = EPOCHS * math.ceil(len(images) / BATCH)
        adam = torch.optim.Adam(weights, lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps)
        for x, label in _shuffled(images.float() / 255, labels, generator):
            loss = F.cross_entropy(module(x), label, label_smoothing=0.1)
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            adam.step()
            schedule.step()
    return module


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shuffled(
    x: Tensor, labels: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of all epochs, each image moved by up to SHIFT pixels."""
    padded, window = F.pad(x, (SHIFT,) * 4), torch.arange(SIDE)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            offset = torch.randint(2 * SHIFT + 1, (2, len(rows), 1), generator=generator)
            down, right = (offset + window)[..., None].unbind()
            picked = padded[rows[:, None, None], 0, down, right.transpose(1, 2)]
            yield picked[:, None], labels[rows]


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
