"""Built-in data sets: each source in its turn, verified, once, whoever asks."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import multiprocessing
import shutil
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from genus.data import datasets
from genus.data.built_in import IdxFiles
from genus.data.manifest import Manifest
from genus.data.store import Folder
from genus.errors import DataError

FILES = ("a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte.gz")


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A data set's own files: 20 images of 3x3, 2 classes."""
    folder = tmp_path / "originals"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 3), np.uint8)
    for file, array in zip(FILES, (images, images[:, 0, 0] % 2), strict=True):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / file).write_bytes(gzip.compress(head + array.tobytes()))
    return folder


@pytest.fixture
def toy(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IdxFiles:
    """A built-in data set that no source has; the data root and the current folder are tmp_path."""
    content = {file: gzip.decompress((originals / file).read_bytes()) for file in FILES}
    toy = IdxFiles(
        files={"train": FILES, "test": FILES},
        sha256={file: hashlib.sha256(data).hexdigest() for file, data in content.items()},
        classes=("even", "odd"),
        package="dataset-toy",
        installed=f"{str(tmp_path)[1:]}/installed",
        home="http://127.0.0.1:9/",  # nobody listens
    )
    monkeypatch.setitem(datasets.BUILT_IN, "toy", toy)
    monkeypatch.setenv("GENUS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return toy


def test_a_folder_that_the_user_names(
    toy: IdxFiles, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = datasets.fetch("toy", source=originals)
    assert folder == tmp_path / "data" / "toy"
    assert f"taken from your folder {originals}" in capsys.readouterr().out
    for split in ("train", "test"):
        manifest = Manifest.load(Folder(folder / split))
        assert manifest.total == 20
        assert manifest.classes == ("even", "odd")
    assert datasets.resolve("toy") == Folder(folder / "train")
    assert datasets.resolve("toy/train") == Folder(folder / "train")
    assert datasets.resolve("toy/test") == Folder(folder / "test")
    assert datasets.resolve(str(folder / "test")) == Folder(folder / "test")
    datasets.fetch("toy")
    assert capsys.readouterr().out == ""  # it was there


def test_a_wrong_folder_is_refused_not_passed_over(
    toy: IdxFiles, originals: Path, tmp_path: Path
) -> None:
    shutil.copytree(originals, tmp_path / "installed")  # another source would do
    (originals / FILES[1]).write_bytes(gzip.compress(b"other labels"))
    with pytest.raises(DataError, match=f"{FILES[1]} is not the original"):
        datasets.fetch("toy", source=originals)
    (originals / FILES[1]).write_bytes(b"no gzip")
    with pytest.raises(DataError, match=f"can't read .*{FILES[1]}"):
        datasets.fetch("toy", source=originals)
    (originals / FILES[1]).unlink()
    with pytest.raises(DataError, match=f"there is no .*{FILES[1]}"):
        datasets.fetch("toy", source=originals)
    assert not (tmp_path / "data" / "toy").exists()


def test_the_installed_package(
    toy: IdxFiles, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(originals, tmp_path / "installed")
    datasets.fetch("toy")
    assert "taken from the installed package dataset-toy" in capsys.readouterr().out


def test_the_package_by_apt(
    toy: IdxFiles, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """apt-get stands in: it knows the package only after an update, as in a fresh container."""
    program(
        tmp_path / "bin" / "apt-get",
        f'case "$1" in update) : > {tmp_path}/updated;; download) '
        f"[ -e {tmp_path}/updated ] || {{ echo E: unable to locate >&2; exit 100; }}; "
        ": > dataset-toy_1_all.deb;; esac",
    )
    program(
        tmp_path / "bin" / "dpkg-deb",
        f'/bin/mkdir -p "$3/{toy.installed}"; /bin/cp {originals}/* "$3/{toy.installed}"',
    )
    datasets.fetch("toy")
    assert "taken from apt-get download dataset-toy" in capsys.readouterr().out


def test_the_home_page(
    toy: IdxFiles,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(datasets.BUILT_IN, "toy", replace(toy, home=server))
    datasets.fetch("toy")
    assert f"taken from its home page {server}" in capsys.readouterr().out


@pytest.fixture
def server(originals: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(originals))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        pass


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_without_any_source_the_error_says_all(toy: IdxFiles, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "apt-get", "echo E: no such package >&2; exit 100")
    program(tmp_path / "bin" / "dpkg-deb", "")
    with pytest.raises(DataError) as caught:
        datasets.resolve("toy")
    message = str(caught.value)
    for part in (
        f"there is no {tmp_path}/installed/{FILES[0]}",
        "E: no such package",
        toy.home,
        "genus data fetch toy --source FOLDER",
    ):
        assert part in message
    assert not (tmp_path / "data" / "toy").exists()


def fetch_and_count(root: Path, source: Path, start: object, log: Path) -> None:
    start.wait()  # type: ignore[attr-defined]
    with log.open("a") as file, contextlib.redirect_stdout(file):
        datasets.fetch("toy", root, source)


def test_several_processes_fetch_once(toy: IdxFiles, originals: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)
    arguments = (tmp_path / "data", originals, start, tmp_path / "log")
    processes = [fork.Process(target=fetch_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text().count("taken from") == 1
    assert sorted(path.name for path in (tmp_path / "data" / "toy").iterdir()) == ["test", "train"]


def test_unknown_urls_say_what_there_is(toy: IdxFiles, tmp_path: Path) -> None:
    for url in ("cifar", "toy/validation", str(tmp_path)):
        with pytest.raises(DataError, match="built-in data set: fashion-mnist, fashion-mnist/test"):
            datasets.resolve(url)
    with pytest.raises(DataError, match="no place for data"):
        datasets.resolve("ftp://host/data")
    with pytest.raises(DataError, match="no built-in data set 'cifar'"):
        datasets.fetch("cifar")
    (tmp_path / "x.tar").touch()
    with pytest.raises(DataError, match="genus data index"):
        datasets.resolve(str(tmp_path))


def test_fashion_mnist_names_its_classes() -> None:
    fashion = datasets.BUILT_IN["fashion-mnist"]
    assert isinstance(fashion, IdxFiles)
    shipped = Manifest.load(Folder(Path(__file__).parent / "fashion-1000"))
    assert fashion.classes == shipped.classes
    assert set(fashion.sha256) == {file for pair in fashion.files.values() for file in pair}
