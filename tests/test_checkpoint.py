"""Checkpoints of one process: what is written, kept, refused, and told apart."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genus.checkpoint import Checkpoints, Stateful
from genus.checkpoint_reader import digest, newest, published, read_index, read_tensors
from genus.errors import CheckpointError
from genus.optim.build import AdamWConfig
from genus.optim.state import OptimizerState
from genus.parallel import World
from genus.state import State

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Box:
    """A state that is what it was given."""

    def __init__(self, **state: Tensor | int | float | str) -> None:
        self.state: State = state

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = state


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def trained(seed: int, width: int = 8) -> dict[str, Stateful]:
    """A network after some steps, its optimizer, and scalars of every kind."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2)
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (optimizer,) = AdamWConfig(lr=0.1).build(network)
    for _ in range(2):
        network(torch.randn(4, 3, 3, 3)).square().mean().backward()
        optimizer.step()
    scalars = Box(position=2**53 + 1, loss=0.1 + 0.2, tiny=5e-324, nan=float("nan"), name="ä")
    tensors = Box(
        bf16=torch.randn(3).bfloat16(),
        count=torch.tensor(seed),
        empty=torch.zeros(0, 3),
        flags=torch.tensor([True, False]),
        strided=torch.randn(4, 6)[:, ::2],
    )
    optimizers = OptimizerState(network, [optimizer])
    return {"network": network, "optimizer": optimizers, "scalars": scalars, "tensors": tensors}  # type: ignore[dict-item]


def flat(states: dict[str, Stateful]) -> dict[str, object]:
    return {f"{n}/{k}": v for n, state in states.items() for k, v in state.state_dict().items()}


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) and x.dtype == y.dtype
        if isinstance(x, Tensor) and isinstance(y, Tensor)
        else repr(x) == repr(y)
        for x, y in ((x, b[k]) for k, x in a.items())
    )


def saved(folder: Path, world: World, states: dict[str, Stateful], *samples: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, world)
    for count in samples:
        checkpoints.save(states, count)
        checkpoints.wait()
    return checkpoints


# ---- save and load -------------------------------------------------------------------------------


def test_round_trip_to_the_bit(tmp_path: Path, world: World) -> None:
    states, others = trained(0), trained(1)
    checkpoints = saved(tmp_path, world, states, 640)
    path = checkpoints.newest()
    assert path == tmp_path / "samples-000000000640"
    assert not same(flat(states), flat(others))
    assert checkpoints.load(others, path) == 640
    assert same(flat(states), flat(others))


def test_a_fresh_optimizer_takes_what_it_had_not_made_yet(tmp_path: Path, world: World) -> None:
    states, fresh = trained(0), trained(1)
    checkpoints = saved(tmp_path, world, states, 1)
    network = fresh["network"]
    assert isinstance(network, nn.Module)
    fresh["optimizer"] = OptimizerState(network, AdamWConfig(lr=0.1).build(network))
    checkpoints.load(fresh, tmp_path / "samples-000000000001")
    assert same(flat(states), flat(fresh))


def test_a_save_is_a_copy_of_its_moment(tmp_path: Path, world: World) -> None:
    box = Box(w=torch.ones(1_000_000), step=1)
    checkpoints = Checkpoints(tmp_path, world)
    checkpoints.save({"box": box}, 1)
    weights = box.state["w"]
    assert isinstance(weights, Tensor)
    weights.fill_(7)
    box.state["step"] = 7
    checkpoints.wait()
    checkpoints.load({"box": box}, tmp_path / "samples-000000000001")
    assert box.state["step"] == 1
    stored = read_tensors(tmp_path / "samples-000000000001", "box/")["w"]
    assert torch.equal(stored, torch.ones(1_000_000))


def test_a_published_checkpoint_is_never_overwritten(tmp_path: Path, world: World) -> None:
    saved(tmp_path, world, trained(0), 64)
    before = digest(tmp_path / "samples-000000000064")
    saved(tmp_path, world, trained(1), 64)
    assert digest(tmp_path / "samples-000000000064") == before


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path, world: World) -> None:
    for name in (".saving-samples-000000000064", ".trash-samples-000000000064", ".mine-x"):
        (tmp_path / name).mkdir()
    Checkpoints(tmp_path, world)
    assert [path.name for path in tmp_path.iterdir()] == [".mine-x"]


# ---- retention -----------------------------------------------------------------------------------


def kept(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("samples-")) for path in published(folder)]


@pytest.mark.parametrize(
    ("last", "every", "expected"),
    [
        (1, 0, [960]),
        (0, 0, [960]),
        (3, 0, [832, 896, 960]),
        # The batch does not divide 250: the first checkpoint past each multiple stays for good.
        (2, 250, [256, 512, 768, 896, 960]),
        (1, 320, [320, 640, 960]),
        (1, 10_000, [960]),
    ],
)
def test_what_is_kept(
    tmp_path: Path, world: World, last: int, every: int, expected: list[int]
) -> None:
    for samples in range(64, 961, 64):
        checkpoints = Checkpoints(tmp_path, world, last, every)  # as if resumed each time
        checkpoints.save({"box": Box(x=samples)}, samples)
        checkpoints.wait()
    assert kept(tmp_path) == expected
    assert sorted(path.name[:8] for path in tmp_path.iterdir()) == ["samples-"] * len(expected)


def test_order_is_by_number_and_other_folders_are_left_alone(tmp_path: Path, world: World) -> None:
    mine = tmp_path / "samples-000000000001-backup"
    mine.mkdir()
    (tmp_path / "samples-7").touch()
    saved(tmp_path, world, {"box": Box(x=1)}, 999_999_999_999, 1_000_000_000_000)
    checkpoints = saved(tmp_path, world, {"box": Box(x=2)}, 1_000_000_000_064)  # tokens, say
    assert kept(tmp_path) == [1_000_000_000_000, 1_000_000_000_064]
    assert checkpoints.newest() == tmp_path / "samples-1000000000064"
    assert mine.exists()


def test_a_folder_that_cannot_be_pruned_does_not_end_the_run(
    tmp_path: Path,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".trash" in target.name:
            raise PermissionError("not yours")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    saved(tmp_path, world, {"box": Box(x=1)}, 1, 2, 3)
    assert kept(tmp_path) == [1, 2, 3]
    assert "can't prune old checkpoints: not yours" in capsys.readouterr().out


# ---- damage --------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path / "__0_0.distcp", (path / "__0_0.distcp").stat().st_size - 1)


def flip(name: str, at: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int(at * len(content))] ^= 1
        (path / name).write_bytes(content)

    return damage


def change_a_scalar(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    meta["scalars"]["scalars"]["position"] += 1
    (path / "meta.json").write_text(json.dumps(meta))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "empty shard": lambda path: (path / "__0_0.distcp").write_bytes(b""),
    "flipped bit in the shard": flip("__0_0.distcp", 0.7),
    "flipped bit in the index": flip(".metadata", 0.5),
    "flipped bit in meta.json": flip("meta.json", 0.3),
    "changed scalar": change_a_scalar,
    "no meta.json": lambda path: (path / "meta.json").unlink(),
    "torn meta.json": lambda path: os.truncate(path / "meta.json", 40),
    "meta.json of another kind": lambda path: (path / "meta.json").write_text("[]"),  # type: ignore[dict-item]
    "no shard": lambda path: (path / "__0_0.distcp").unlink(),
    "no index": lambda path: (path / ".metadata").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_loaded(
    tmp_path: Path,
    world: World,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, states = tmp_path / "run", trained(0)
    checkpoints = saved(run / "checkpoints", world, states, 64, 128)
    first, second = published(run / "checkpoints")
    damage(second)
    assert newest(run) == first  # readers touch nothing
    assert second.exists()
    assert checkpoints.newest() == first
    assert not second.exists()
    (aside,) = (run / "checkpoints").glob("damaged-samples-000000000128-*")
    assert f"set aside as {aside.name}" in capsys.readouterr().out
    loaded = trained(1)
    assert checkpoints.load(loaded, first) == 64
    assert same(flat(loaded), flat(states))
    saved(run / "checkpoints", world, states, 128)  # its place is free again
    assert checkpoints.newest() == second


def test_nothing_but_damage_does_not_begin_anew_silently(tmp_path: Path, world: World) -> None:
    checkpoints = saved(tmp_path, world, trained(0), 64)
    truncate(tmp_path / "samples-000000000064")
    for _ in range(2):  # nor at the second attempt
        with pytest.raises(CheckpointError, match="no whole checkpoint any more, only damaged-"):
            checkpoints.newest()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        newest(tmp_path)
    for aside in tmp_path.glob("damaged-*"):
        shutil.rmtree(aside)
    assert checkpoints.newest() is None


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, world: World) -> None:
    saved(tmp_path, world, {"box": Box(w=torch.ones(3))}, 1)
    path, marker = tmp_path / "samples-000000000001", tmp_path / "owned"
    command = f"touch {marker}"

    def attack(module: str, name: str) -> bytes:
        text = [b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name, command)]
        return b"\x80\x04" + text[0] + text[1] + b"\x93" + text[2] + b"\x85R."

    for content in (
        attack("os", "system"),
        attack("torch.distributed.checkpoint.filesystem", "os.system"),  # through an import
        attack("torch.distributed.checkpoint.filesystem", "pickle.loads"),
        attack("torch.serialization", "os.system"),
        b"cos\nsystem\n(V" + command.encode() + b"\ntR.",
        pickle.dumps(["no index"]),
        b"garbage",
        b"",
    ):
        (path / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not loaded|no readable index|no index of"):
            read_index(path)
        assert not marker.exists()


# ---- what does not fit ---------------------------------------------------------------------------


class Strict(Box):
    """Complains as real objects do."""

    def load_state_dict(self, state: State) -> None:
        self.state = {key: state[key] for key in self.state}


W = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"box": Box(w=torch.ones(3, 2))}, r"'box/w' is torch.float32 \(2, 3\), this run's"),
        ({"box": Box(w=W.double())}, r"'box/w' is torch.float32.*torch.float64"),
        ({"box": Box(w=W, more=W)}, "holds no 'box/more': it was saved by another config"),
        ({"box": Box(w=W), "scaler": Box(scale=1.0)}, "holds no 'scaler': it was saved"),
        ({"box": Strict(w=W, momentum=0.9)}, "'box' does not fit this .*KeyError: 'momentum'"),
        ({"linear": nn.Linear(2, 2)}, "'linear' does not fit this .*Unexpected key"),
    ],
)
def test_a_checkpoint_of_another_configuration(
    tmp_path: Path, world: World, states: dict[str, Stateful], said: str
) -> None:
    linear = Box(weight=torch.ones(2, 2), bias=torch.ones(2), gain=torch.ones(2))
    checkpoints = saved(tmp_path, world, {"box": Box(w=W, step=3), "linear": linear}, 1)
    with pytest.raises(CheckpointError, match=said) as error:
        checkpoints.load(states, tmp_path / "samples-000000000001")
    assert "take another run.name" in str(error.value)


def test_other_optimizers(tmp_path: Path, world: World) -> None:
    checkpoints = saved(tmp_path, world, {"optimizer": trained(0)["optimizer"]}, 1)
    frozen = OptimizerState(nn.ReLU(), [])
    with pytest.raises(CheckpointError, match="saved by AdamW"):
        checkpoints.load({"optimizer": frozen}, tmp_path / "samples-000000000001")


# ---- digest --------------------------------------------------------------------------------------


def digest_of(folder: Path, world: World, states: dict[str, Stateful], samples: int = 1) -> str:
    saved(folder, world, states, samples)
    (path,) = published(folder)
    total = digest(path)["total"]
    shutil.rmtree(folder)
    return total


def test_digest_is_stable_and_names_its_pieces(tmp_path: Path, world: World) -> None:
    states = trained(0)
    total = digest_of(tmp_path / "a", world, states)
    assert digest_of(tmp_path / "b", world, dict(reversed(states.items()))) == total
    moved = trained(0)
    network = moved["network"]
    assert isinstance(network, nn.Module)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert digest_of(tmp_path / "c", world, moved) == total
    saved(tmp_path / "d", world, states, 1)
    pieces = digest(tmp_path / "d" / "samples-000000000001")
    assert list(pieces) == ["network", "optimizer", "scalars", "tensors", "total"]


def test_digest_feels_every_bit_and_every_scalar(tmp_path: Path, world: World) -> None:
    def base() -> dict[str, Stateful]:
        return {
            "a": Box(x=torch.arange(3.0), half=torch.ones(2).bfloat16(), flag=torch.tensor(True)),
            "b": Box(n=1, f=0.1, s="x"),
        }

    seen = {digest_of(tmp_path, world, base())}

    def differs(states: dict[str, Stateful], samples: int = 1) -> None:
        found = digest_of(tmp_path, world, states, samples)
        assert found not in seen
        seen.add(found)

    for key in ("x", "half"):
        changed = base()
        tensor = changed["a"].state_dict()[key]
        assert isinstance(tensor, Tensor)
        tensor.view(torch.uint8)[-3] ^= 1  # the last bit but some
        differs(changed)
    for name, value in (("n", 2), ("n", 1.0), ("f", 0.1 + 2**-56), ("s", "y"), ("extra", 0)):
        differs({**base(), "b": Box(**{**base()["b"].state_dict(), name: value})})
    tensors = base()["a"].state_dict()
    differs({**base(), "a": Box(**{**tensors, "flag": torch.tensor(False)})})
    differs({**base(), "a": Box(**{**tensors, "x": torch.arange(3.0).reshape(3, 1)})})
    differs({**base(), "a": Box(**{**tensors, "x": torch.arange(3.0).view(torch.int32)})})
    differs({**base(), "c": Box()})
    differs(base(), samples=2)


# ---- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small file system is not permitted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", ["none", "1 MiB", "the shard", "the shard and the index"])
def test_a_full_disk(small_disk: Path, world: World, room: str) -> None:
    folder = small_disk / "checkpoints"
    states: dict[str, Stateful] = {"box": Box(w=torch.randn(2_000_000))}
    checkpoints = saved(folder, world, states, 64)
    first = folder / "samples-000000000064"
    shard, page = (first / "__0_0.distcp").stat().st_size, 4096
    pages = -(-shard // page)
    left = {"none": 0, "1 MiB": 256, "the shard": pages, "the shard and the index": pages + 1}
    free = os.statvfs(small_disk).f_bavail
    (small_disk / "filler").write_bytes(bytes((free - left[room]) * page))

    checkpoints.save({"box": Box(w=torch.zeros(2_000_000))}, 128)
    with pytest.raises(CheckpointError) as error:
        checkpoints.wait()
    text = str(error.value)
    assert "can't save" in text
    assert "samples-000000000128: the disk is full or over quota" in text
    assert "make room, then start the same command again to resume" in text
    assert "Traceback" not in text
    assert [path.name for path in folder.iterdir()] == [first.name]  # the reserved folder is gone
    assert os.statvfs(small_disk).f_bavail == left[room]
    assert checkpoints.newest() == first
    box = Box(w=torch.zeros(2_000_000))
    assert checkpoints.load({"box": box}, first) == 64
    assert same(box.state, states["box"].state_dict())  # type: ignore[arg-type]

    (small_disk / "filler").unlink()
    checkpoints.save(states, 128)
    checkpoints.wait()
    assert kept(folder) == [64, 128]


def test_a_folder_that_cannot_be_written(tmp_path: Path, world: World) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints = saved(folder, world, {"box": Box(x=1)}, 1)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    checkpoints.save({"box": Box(x=1, w=torch.ones(1))}, 2)
    with pytest.raises(CheckpointError, match=r"can't save .*(Not a directory|File exists)"):
        checkpoints.wait()
