"""Batches on a GPU are those on the host, whatever the workers, while the GPU is busy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from genus.data.pack import pack
from genus.data.stream import DataConfig, open_stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("colour")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(256):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
    pack(folder / "images", folder / "out", shard_size=32)
    return str(folder / "out")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_device_gets_what_the_host_gets(colour: str, workers: int) -> None:
    host = iter(open_stream(DataConfig(url=colour, workers=0), batch=32, seed=0))
    config = DataConfig(url=colour, workers=workers)
    device = iter(open_stream(config, batch=32, seed=0, device="cuda"))
    load, kept = torch.randn(2048, 2048, device="cuda"), []
    for _ in range(24):
        for _ in range(5):  # keeps the GPU behind the host, so copies run while it computes
            load = torch.tanh(load @ load)
        there, here = next(device), next(host)
        assert there["image"].is_cuda
        assert there["image"].is_contiguous()
        kept.append((there, here))
    for there, here in kept:  # only now is the GPU asked
        assert torch.equal(there.ids, here.ids)
        assert torch.equal(there["image"].cpu(), here["image"])
