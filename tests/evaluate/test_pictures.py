"""Sample grids to the pixel; curves to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genus.errors import EvaluationError
from genus.evaluate.curves import save_curves, smooth
from genus.evaluate.grid import save_grid, tile


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_small_images_are_doubled_and_stand_where_they_belong(
    tmp_path: Path, channels: int, mode: str
) -> None:
    images = torch.randint(0, 256, (5, channels, 3, 4), dtype=torch.uint8)
    path = tmp_path / "samples" / "grid.png"
    save_grid(images, path, columns=3)
    with Image.open(path) as picture:
        assert picture.mode == mode
        pixels = np.asarray(picture)
    pixels = pixels.reshape(2 * 6 + 2, 3 * 8 + 2 * 2, channels).transpose(2, 0, 1)
    seen = np.zeros(pixels.shape, dtype=bool)
    for i in range(5):
        y, x = i // 3 * 8, i % 3 * 10
        for dy in (0, 1):
            for dx in (0, 1):
                place = np.s_[:, y + dy : y + 6 : 2, x + dx : x + 8 : 2]
                assert (pixels[place] == images[i].numpy()).all()
                seen[place] = True
    assert (pixels[~seen] == 255).all()
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_large_images_keep_their_size() -> None:
    images = torch.randint(0, 256, (2, 1, 65, 10), dtype=torch.uint8)
    picture = tile(images, columns=2)
    assert picture.shape == (1, 65, 22)
    assert torch.equal(picture[..., :10], images[0])
    assert torch.equal(picture[..., 12:], images[1])


def test_no_grid_of_what_is_no_image() -> None:
    with pytest.raises(EvaluationError, match="uint8 images"):
        tile(torch.zeros(2, 1, 4, 4), 2)
    with pytest.raises(EvaluationError, match="0 columns"):
        tile(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 0)


def test_smoothing_keeps_constants_and_starts_without_bias() -> None:
    assert smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    line = smooth([float(i) for i in range(600)])
    assert line[0] == 0
    # an exponential average with memory n lags n - 1 behind a straight line: here n = 20
    assert line[-1] == pytest.approx(599 - 19, abs=1e-6)
    assert smooth([1.0, 5.0]) == [1.0, 5.0]


def test_curves_over_samples_skip_what_is_no_number(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"samples": 64 * i, "loss": 1 / (i + 1)} for i in range(50)]
    rows += [{"samples": 9, "loss": "nan"}, {"event": "x"}, {"samples": 3200, "lr": 0.1}]
    path = tmp_path / "curves.png"
    save_curves(rows, path, ["loss", "lr", "absent"])
    with Image.open(path) as picture:
        assert picture.size == (800, 600)  # two panels: loss and lr
        colours = {tuple(c) for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert (0x1F, 0x77, 0xB4) in colours  # the smoothed line
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    with pytest.raises(EvaluationError, match="no row has any of absent"):
        save_curves(rows, path, ["absent"])
