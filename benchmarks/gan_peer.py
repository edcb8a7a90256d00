"""stylegan2-pytorch (lucidrains) for benchmarks/gan.py: installed, imported, and trained a step.

It lies in a folder of its own, without what it requires: torchvision has no CPU build for this
torch, and it and the others that are stood in for load pictures or log. What training computes with
is its own code, and kornia's filter. It asks for CUDA at its import and moves tensors there: on a
CPU ``cuda()`` leaves them where they are.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

PEERS = ("stylegan2-pytorch==1.9.0", "kornia==0.9.0", "kornia_rs==0.2.0")
NAME = PEERS[0].replace("==", " ")
STAND_INS = {
    "torchvision": ("transforms",),
    "vector_quantize_pytorch": ("VectorQuantize",),
    "aim": (),
    "fire": (),
}
"""Names that it imports; nothing of them is called here."""
Kind = Literal["plain", "penalty", "penalty and path"]
STEPS: dict[Kind, int] = {"plain": 30_001, "penalty": 30_004, "penalty and path": 30_016}
"""Its penalties are due by the number of the step, 4 and 32. None of these is one of its averages
(each 10th), evaluations or checkpoints."""


def install(folder: Path) -> Path:
    """The folder, where the packages are after this."""
    ready = folder / ".ready"
    if not (ready.exists() and ready.read_text().split() == list(PEERS)):
        print(f"installing {NAME} in {folder}", file=sys.stderr)
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*words, "--target", folder, *PEERS], check=True, stdout=sys.stderr)
        ready.write_text("\n".join(PEERS))
    return folder


def load(folder: Path) -> Any:
    """Its module, from ``folder``; CalledProcessError where pip can't install it there."""
    sys.path.append(str(install(folder)))  # at the end: nothing of ours is replaced
    for name, parts in STAND_INS.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        for part in parts:
            setattr(module, part, None)
    with _cuda_or_not():
        import stylegan2_pytorch.stylegan2_pytorch as peer  # type: ignore[import-not-found]
    return peer


@contextmanager
def _cuda_or_not() -> Iterator[None]:
    """Within, torch says that there is CUDA; without CUDA nothing is moved to it."""
    kept, has_cuda = torch.cuda.is_available, torch.cuda.is_available()
    torch.cuda.is_available = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_available = kept
    if not has_cuda:
        for kind in (Tensor, nn.Module):
            kind.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


class PeerTraining:
    """Its Trainer's own train(), one step a call, on a batch that is always the same."""

    def __init__(self, module: Any, resolution: int, capacity: int, batch: int) -> None:
        self._folder, never = tempfile.TemporaryDirectory(), 10**9
        self.trainer = module.Trainer(
            base_dir=self._folder.name,
            image_size=resolution,
            network_capacity=capacity,
            batch_size=batch,
            lr=0.0,
            save_every=never,
            evaluate_every=never,
        )
        self.trainer.init_GAN()
        images = torch.rand(batch, 3, resolution, resolution)
        # each a tensor of its own: the penalty asks for the gradient of the batch itself
        self.trainer.loader = (images.clone() for _ in itertools.count())

    def step(self, kind: Kind) -> None:
        """One step of that kind."""
        self.trainer.steps = STEPS[kind]
        self.trainer.train()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By our names."""
        gan = self.trainer.GAN
        return {"mapping": gan.S, "synthesis": gan.G, "discriminator": gan.D}
