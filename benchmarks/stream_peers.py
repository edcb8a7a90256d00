"""webdataset, mosaicml-streaming (MDS) and LitData for benchmarks/stream.py, in their own venv.

    python stream_peers.py pack FOLDER     writes FOLDER/mds and FOLDER/litdata from FOLDER/tar
    python stream_peers.py measure TASK    one pass of one library; TASK is JSON

Each reads as its documentation shows, with its shuffling on. What decodes is either what the
library ships (Pillow in all three) or, for ``"decoder": "genus"``, our function on their bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_clock import BATCH, Loader, Task, clock, example, report
from torch import Tensor
from torch.utils.data import DataLoader

SHUFFLE_BUFFER = 1000
SHARD_SHUFFLE = 100


def samples(tar: Path) -> Iterator[dict[str, Any]]:
    """Image files and labels of a shard in their order, bytes as they are."""
    import webdataset as wds

    for sample in wds.WebDataset(str(tar), shardshuffle=False):
        image = next(sample[name] for name in ("png", "jpg") if name in sample)
        yield {"image": image, "label": int(sample["cls"])}


def pack(folder: Path) -> None:
    """The same bytes, as many samples a shard, in the formats of MDS and LitData."""
    from litdata import optimize
    from streaming import MDSWriter

    tars = sorted((folder / "tar").glob("*.tar"))
    size = sum(1 for _ in samples(tars[0]))
    if not (folder / "mds").exists():
        columns = {"image": "bytes", "label": "int"}
        with MDSWriter(out=str(folder / "mds.new"), columns=columns, size_limit=None) as writer:
            for tar in tars:
                if tar != tars[0]:  # MDS limits shards by bytes only: cut where the tars are cut
                    writer.flush_shard()
                    writer._reset_cache()
                for sample in samples(tar):
                    writer.write(sample)
        (folder / "mds.new").rename(folder / "mds")
    if not (folder / "litdata").exists():
        out = str(folder / "litdata.new")
        optimize(samples, tars, out, chunk_size=size, num_workers=1, reorder_files=False)
        (folder / "litdata.new").rename(folder / "litdata")


def decoder(task: Task) -> Callable[[bytes], Tensor]:
    """Bytes of an image file -> (C, H, W) uint8."""
    channels, size = task["channels"], task["size"]
    if task["decoder"] == "genus":
        from genus.data.decode import decode_into

        def ours(data: bytes | memoryview) -> Tensor:  # LitData gives views
            out = np.empty((size, size, channels), np.uint8).transpose(2, 0, 1)
            decode_into(bytes(data), out, channels, "pad")
            return torch.from_numpy(out)

        return ours

    from PIL import Image

    def pillow(data: bytes) -> Tensor:
        pixels = np.array(Image.open(io.BytesIO(data)))
        return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))

    return pillow


def webdataset(task: Task) -> Loader:
    """Tars read from their beginning to their end, shards and a buffer of samples shuffled."""
    import webdataset as wds

    urls = signed_urls(task) if task["remote"] else task["shards"]
    if task["decoder"] == "genus":
        decode = wds.autodecode.handle_extension("png jpg", decoder(task))
    else:
        decode = "torchl8" if task["channels"] == 1 else "torchrgb8"
    if task["remote"]:
        Path(task["cache"]).mkdir(parents=True, exist_ok=True)
    dataset = (
        wds.WebDataset(
            urls, shardshuffle=SHARD_SHUFFLE, cache_dir=task["cache"] if task["remote"] else None
        )
        .shuffle(SHUFFLE_BUFFER)
        .decode(decode)
        .to_tuple("png;jpg", "cls")
        .batched(BATCH)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=task["workers"])


def signed_urls(task: Task) -> list[str]:
    """Links for webdataset's own http reader (curl): it has no reader of s3:// any more, and a
    pipe to the aws command costs half a second of Python a shard."""
    import obstore

    bucket, _, prefix = task["remote"].removeprefix("s3://").partition("/")
    store = obstore.store.S3Store(
        bucket, client_options={"allow_http": True}, virtual_hosted_style_request=False
    )
    names = [f"{prefix}/tar/{Path(shard).name}" for shard in task["shards"]]
    return list(obstore.sign(store, "GET", names, timedelta(hours=6)))


def mds(task: Task) -> Loader:
    """StreamingDataset under torch's DataLoader, its default algorithm of shuffling (py1e)."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # what a killed process left
    decode = decoder(task)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            sample = super().__getitem__(number)
            return decode(sample["image"]), sample["label"]

    if task["remote"]:
        place = {"remote": task["remote"] + "/mds", "local": task["cache"]}
    else:
        place = {"local": task["folder"] + "/mds"}
    dataset = Images(**place, shuffle=True, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=task["workers"])


def litdata(task: Task) -> Loader:
    """StreamingDataset under LitData's StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # its S3 client knows https:// only, and the server here speaks http://; else it is as shipped
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    decode = decoder(task)

    def transform(sample: dict[str, Any]) -> tuple[Tensor, int]:
        return decode(sample["image"]), sample["label"]

    place: dict[str, Any] = {"input_dir": task["folder"] + "/litdata"}
    if task["remote"]:
        Path(task["cache"]).mkdir(parents=True, exist_ok=True)
        place = {
            "input_dir": task["remote"] + "/litdata",
            "cache_dir": task["cache"],
            "storage_options": {
                "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
            },
        }
    dataset = StreamingDataset(**place, shuffle=True, transform=transform)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=task["workers"])


LIBRARIES: dict[str, tuple[str, Callable[[Task], Loader]]] = {
    "webdataset": ("webdataset", webdataset),
    "mosaicml-streaming": ("streaming", mds),
    "litdata": ("litdata", litdata),
}
"""Package's name -> (module, what makes its loader)."""


def main() -> None:
    command, argument = sys.argv[1:]
    if command == "pack":
        pack(Path(argument))
        return
    task: Task = json.loads(argument)
    with contextlib.suppress(KeyError):  # MDS has its own name for it
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    module, make = LIBRARIES[task["library"]]
    importlib.import_module(module)
    decoder(task)(example(task))
    report(clock(lambda: make(task), task))


if __name__ == "__main__":
    main()
