"""What benchmarks/stream.py needs once: the peers' environment, the images, their shards.

Everything lies in folders that the caller names and is made where it isn't there yet.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from genus.data.datasets import resolve
from genus.data.index import index_folder
from genus.data.manifest import Manifest
from genus.data.pack import pack

HERE = Path(__file__).parent
PEERS = ("mosaicml-streaming==0.13.0", "litdata==0.2.76", "webdataset==1.0.2")
OUR_DECODER = ("imagecodecs", "simplejpeg")
"""What genus.data.decode imports: the peers get it for the rows with our decoder."""
STAND_IN = {
    "torchvision-0.99.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99\n"
    ),
    "torchvision-0.99.dist-info/INSTALLER": "benchmarks/stream_setup.py\n",
    "torchvision-0.99.dist-info/RECORD": "",
    "torchvision/__init__.py": "",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "to_tensor = None\n",
    "torchvision/datasets.py": "class VisionDataset:\n    pass\n",
}
"""torchvision as far as MDS imports names from it; nothing of it is ever called."""
PICTURES = ("openclipart-png", "tuxpaint-stamps-default")
JPEGS = 8000
SIDE = 256
MOST_PIXELS = 4_000_000


@dataclass(frozen=True)
class DataSet:
    """One set of images in every library's format."""

    name: str
    folder: Path
    """tar/ (Genus and webdataset), mds/, litdata/."""
    channels: int
    size: int
    samples: int
    label_sum: int
    classes: int

    @property
    def shards(self) -> list[str]:
        """The tars, in their order."""
        return [str(path) for path in sorted((self.folder / "tar").glob("*.tar"))]


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' own environment, which is made if it isn't there.

    Two of them require torchvision, which has no CPU build for this torch: an empty package stands
    in for it. They decode with Pillow then, or with our decoder.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    torch = version("torch").partition("+")[0]
    wanted = [f"torch=={torch}", *PEERS, *(f"{name}=={version(name)}" for name in OUR_DECODER)]
    if ready.exists() and ready.read_text().split() == wanted:
        return python
    print(f"making the peers' environment in {folder}", file=sys.stderr)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    roots = {"base": str(folder), "platbase": str(folder)}
    libraries = Path(sysconfig.get_path("purelib", vars=roots))
    for name, text in STAND_IN.items():
        (libraries / name).parent.mkdir(parents=True, exist_ok=True)
        (libraries / name).write_text(text)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    ready.write_text("\n".join(wanted))
    return python


def fashion(folder: Path, samples: int, url: str = "fashion-mnist/train") -> DataSet:
    """The first shards of a data set of PNGs of 28 x 28, at least ``samples`` of them."""
    tars = folder / "tar"
    if not (tars / "manifest.json").exists():
        tars.mkdir(parents=True, exist_ok=True)
        source = resolve(url)
        taken = 0
        for shard in Manifest.load(source).shards:
            if taken < samples:
                (tars / shard.url).write_bytes(source.read_all(shard.url))
                taken += shard.nsamples
        index_folder(tars)
    return described("fashion 28 px PNG", folder)


def jpegs(folder: Path) -> DataSet:
    """8,000 JPEGs of 256 x 256 made from Debian's clip art and stamps, 500 a shard."""
    if not (folder / "tar").exists():
        files = folder / "files"
        if not files.exists():
            debs = folder / "debian"
            debs.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", *PICTURES], cwd=debs, check=True)
            for package in debs.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package.name, "x"], cwd=debs, check=True)
            _encode(debs / "x" / "usr" / "share", folder / "files.new")
            (folder / "files.new").rename(files)
            shutil.rmtree(debs)
        pack(files, folder / "tar", shard_size=500)
    return described("JPEG 256 px", folder)


def _encode(pictures: Path, out: Path) -> None:
    """Each readable picture over white, its shorter side resized to 256, the middle, quality 90.
    Its class is the folder of its category."""
    shutil.rmtree(out, ignore_errors=True)
    done = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = sorted(pictures.rglob("*.png"), reverse=True)  # the stamps, many photos, first
        for picture, data in zip(found, pool.imap(_jpeg, found, chunksize=16), strict=False):
            if data is None:
                continue
            category = out / "-".join(picture.relative_to(pictures).parts[1:3])
            category.mkdir(parents=True, exist_ok=True)
            (category / f"{done:06d}.jpg").write_bytes(data)
            done += 1
            if done == JPEGS:
                break


def _jpeg(path: Path) -> bytes | None:
    """One picture as such a JPEG; None for the few that are broken or larger than 4 Mpx."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            over = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", over.size, "white")
    square = ImageOps.fit(Image.alpha_composite(white, over).convert("RGB"), (SIDE, SIDE))
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def described(name: str, folder: Path) -> DataSet:
    """What the manifest says of the packed images."""
    manifest = Manifest.load(resolve(str(folder / "tar")))
    label_sum = sum(number * count for number, count in enumerate(manifest.counts))
    return DataSet(
        name=name,
        folder=folder,
        channels=manifest.channels,
        size=manifest.height,
        samples=manifest.total,
        label_sum=label_sum,
        classes=len(manifest.counts),
    )


def pack_for_peers(data: DataSet, python: Path) -> None:
    """MDS and LitData write their shards from the same bytes."""
    if not all((data.folder / form).exists() for form in ("mds", "litdata")):
        words: list[str | Path] = [python, HERE / "stream_peers.py", "pack", data.folder]
        subprocess.run(words, check=True, stdout=sys.stderr)


def files(folder: Path) -> Iterator[Path]:
    """All plain files of a folder's tree."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def evict(folder: Path) -> None:
    """Drop the files' pages from the system's memory, so that the next read goes to the disk."""
    for path in files(folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(file)  # dirty pages stay
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def versions(python: Path) -> dict[str, str]:
    """Library -> version in an environment, for the rows' names."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in sys.argv}))"
    )
    names = [name.partition("==")[0] for name in PEERS]
    output = subprocess.run([python, "-c", code, *names], check=True, capture_output=True).stdout
    found: dict[str, str] = json.loads(output)
    return found
