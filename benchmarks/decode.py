"""Image files to pixels in a batch: our decoders against Pillow and OpenCV.

    python benchmarks/decode.py [--json] [--quick] [--pictures FOLDER]

Every row decodes the same files into the same slot of a batch, (C, H, W) uint8, in alternating
rounds on one thread; the median of the rounds' CPU time an image is printed. Outputs are compared
first: full decodes must be equal, pixel by pixel, and a JPEG that is shrunk while it is decoded
must agree with the whole one to 36 dB. Fashion-MNIST gives the small grey PNG; the pictures are
Tux Paint's stamps over white (Debian package tuxpaint-stamps-default: the folder that is given, the
installed one, or fetched by apt-get). The OpenCV rows need opencv-python-headless.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genus.data import decode as ours_module
from genus.data.datasets import resolve
from genus.data.decode import decode_into
from genus.data.index import index_shard, open_shard
from genus.data.manifest import Manifest

Levels = NDArray[np.uint8]
Decoder = Callable[[bytes, Levels], None]
INSTALLED = Path("/usr/share/tuxpaint/stamps")
GOAL = 1.0
"""Against Pillow and OpenCV: nowhere slower."""


def fashion(count: int) -> list[bytes]:
    """The first ``count`` PNG of the training set, as they are packed."""
    store = resolve("fashion-mnist")
    with open_shard(store, Manifest.load(store).shards[0].url) as file:
        index = index_shard(file, "fashion-mnist")
        column = index.extensions.tolist().index("png")
        found = []
        for row in range(count):
            file.seek(index.offset[row, column])
            found.append(file.read(index.size[row, column]))
        return found


def pictures(folder: Path | None, least: int) -> Iterator[Image.Image]:
    """Real pictures of at least ``least`` pixels a side, over white."""
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None and INSTALLED.is_dir():
            folder = INSTALLED
        elif folder is None:
            package = "tuxpaint-stamps-default"
            subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, check=True)
            deb = next(Path(scratch).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", deb, scratch], check=True)
            folder = Path(scratch)
        for path in sorted(folder.rglob("*.png")):
            with Image.open(path) as image:
                if min(image.size) >= least:
                    clear = image.convert("RGBA")
                    white = Image.new("RGBA", clear.size, "white")
                    yield Image.alpha_composite(white, clear).convert("RGB")


def encoded(image: Image.Image, side: int, form: str) -> bytes:
    """The middle square at ``side`` pixels; ``side`` 0 keeps the picture as it is."""
    if side:
        least = min(image.size)
        left, top = ((full - least) // 2 for full in image.size)
        square = (left, top, left + least, top + least)
        image = image.resize((side, side), Image.Resampling.LANCZOS, square)
    buffer = io.BytesIO()
    image.save(buffer, form, **({} if form == "PNG" else {"quality": 90}))
    return buffer.getvalue()


def by_pillow(data: bytes, out: Levels) -> None:
    out[...] = (
        np.asarray(Image.open(io.BytesIO(data))).reshape(*out.shape[1:], -1).transpose(2, 0, 1)
    )


def by_opencv(data: bytes, out: Levels) -> None:
    import cv2

    grey = len(out) == 1
    kind = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), kind | cv2.IMREAD_IGNORE_ORIENTATION)
    if grey:
        out[0] = image
    else:
        cv2.split(image, list(out))


def whole_then_resize(data: bytes, out: Levels) -> None:
    """Ours without shrinking in the decoder."""
    spare, ours_module.SPARE = ours_module.SPARE, 10**9
    decode_into(data, out, len(out), "resize")
    ours_module.SPARE = spare


def measure(
    row: str, files: list[bytes], slot: Levels, ours: Decoder, name: str, peer: Decoder, rounds: int
) -> dict[str, object]:
    """Agreement first, then ``rounds`` alternating passes over the files of each."""
    other = np.zeros(slot.shape, np.uint8)
    worst = 99.0
    for data in files:
        ours(data, slot)
        peer(data, other)
        error = np.square(slot.astype(float) - other).mean()
        worst = min(worst, 10 * np.log10(255**2 / max(error, 1e-5)))
    assert worst > (36 if peer is whole_then_resize else 90), f"{row}, {name}: {worst:.1f} dB"
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds + 1):
        for which, decoder, out in (("ours", ours, slot), ("peer", peer, other)):
            start = time.process_time()
            for data in files:
                decoder(data, out)
            times[which].append(1e6 * (time.process_time() - start) / len(files))
    ours_us, peer_us = (statistics.median(times[which][1:]) for which in times)
    return {
        "row": row,
        "ours": round(ours_us, 1),
        "peer": round(peer_us, 1),
        "peer_name": name,
        "ratio": round(peer_us / ours_us, 3),
        "goal": GOAL,
        "lower_is_better": True,
        "unit": "us an image",
        "worst_psnr": round(worst, 1),
        "device": "cpu, 1 thread",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="fewer images, under 45 s")
    parser.add_argument("--pictures", type=Path, help="a folder with PNG pictures of 256 pixels up")
    args = parser.parse_args()
    count, rounds = (20, 5) if args.quick else (100, 9)
    found = list(islice(pictures(args.pictures, 256), count))
    pad, cover = partial(decode_into, fit="pad"), partial(decode_into, fit="resize")
    peers: dict[str, Decoder] = {"Pillow": by_pillow}
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(0)
        peers["OpenCV"] = by_opencv
    grey, planes = np.zeros((1, 28, 28), np.uint8), np.zeros((3, 256, 256), np.uint8)
    last = np.zeros((256, 256, 3), np.uint8).transpose(2, 0, 1)
    squares = {
        form: [encoded(image, 256, form) for image in found] for form in ("JPEG", "WEBP", "PNG")
    }
    stored = [encoded(image, 0, "JPEG") for image in found if min(image.size) >= 400]
    cases = [("png 28 grey", fashion(10 * count), grey)]
    cases += [(f"{form.lower()} 256", files, planes) for form, files in squares.items()]
    cases += [
        (f"{form.lower()} 256, channels last", squares[form], last) for form in ("JPEG", "PNG")
    ]
    work = [
        (row, files, slot, lambda data, out: pad(data, out, len(out)), name, peer)
        for row, files, slot in cases
        for name, peer in peers.items()
    ]
    for side in (128, 64):
        work.append(
            (
                f"jpeg of 400 and more to {side}",
                stored,
                np.zeros((3, side, side), np.uint8),
                lambda data, out: cover(data, out, len(out)),
                "decoded whole, then resized",
                whole_then_resize,
            )
        )
    for case in work:
        result = measure(*case, rounds)
        if args.json:
            print(json.dumps(result), flush=True)
        else:
            print(
                f"{result['row']}: {result['ours']} us, {result['peer_name']} {result['peer']} us, "
                f"ratio {result['ratio']} (goal {GOAL}); agree to {result['worst_psnr']} dB",
                flush=True,
            )


if __name__ == "__main__":
    main()
