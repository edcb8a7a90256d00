"""``genus checkpoint``: verify, digest, convert from DeepSpeed's format and to safetensors."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from deepspeed_saves import CASES, STEPS, Small
from genus import checkpoint_reader
from genus.checkpoint_reader import newest, published, read_tensors
from genus.cli import main
from genus.deepspeed_checkpoint import MOMENTS, DeepSpeedCheckpoint
from genus.deepspeed_import import convert, key_in_network, matched
from genus.errors import CheckpointError, ConfigError
from launching import command, run
from ranks import run_ranks

RECIPE = "recipes/flow.py"
WORDS = (
    "--preset",
    "tiny",
    "tracking.wandb=off",
    "run.root=.",
    "train.sample_every=0",
    "train.validate_every=0",
    "train.checkpoint_every=16",
    "objective.dequantisation=variational",
)  # two networks; fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SMALL = [case for case in CASES if case != "run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with two checkpoints kept."""
    folder = tmp_path_factory.mktemp("run")
    run(command(1, *WORDS, "run.name=run", "train.samples=48", recipe=RECIPE), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def saved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed's checkpoints, and what DeepSpeed says is in them."""
    folder = tmp_path_factory.mktemp("deepspeed")
    script = Path(__file__).with_name("deepspeed_saves.py")
    run_ranks(script, str(folder), str(trained), timeout=240)
    return folder


# ---- verify and digest ---------------------------------------------------------------------------


def test_verify_finds_a_flipped_byte(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    assert main(["checkpoint", "verify", str(copy)]) == 0
    assert "2 of 2 whole" in capsys.readouterr().out
    shard = next(published(copy / "checkpoints")[0].glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["checkpoint", "verify", str(copy)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("DAMAGED  samples-000000000032")
    assert f"{shard.name} does not have the checksum that was written" in told[0]
    assert "whole    samples-000000000048" in told[1]
    assert "48 samples" in told[1]
    assert main(["checkpoint", "verify", str(newest(copy))]) == 0
    assert main(["checkpoint", "verify", str(shard.parent)]) == 1
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2


def test_digest_is_the_readers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = published(trained / "checkpoints")
    for given, path in ((trained, new), (old, old)):
        assert main(["checkpoint", "digest", str(given)]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0] == str(path)
        found = dict(reversed(line.split("  ")) for line in shown[1:])
        assert found == checkpoint_reader.digest(path)


# ---- from DeepSpeed ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL)
def test_what_deepspeed_saved_is_read_to_the_bit(saved: Path, case: str) -> None:
    found = DeepSpeedCheckpoint(saved / case)
    assert (found.stage, found.ranks) == (int(case[5]), 2)
    expected: dict[str, dict[str, Tensor]] = torch.load(saved / f"{case}.pt", weights_only=True)
    assert set(found.shapes) == set(expected)
    for name, values in expected.items():
        assert torch.equal(found.tensor(name), values["weights"]), name
        for key in MOMENTS:
            assert torch.equal(found.moment(name, key), values[key]), (name, key)
            assert values[key].abs().max() > 0
        assert found.step(name) == STEPS
    fixed = torch.linspace(0.5, 1.5, 7)
    if "bf16" in case:
        fixed = fixed.bfloat16()
    assert torch.equal(found.tensor("fixed"), fixed)
    assert torch.equal(found.tensor("count"), torch.arange(3))


def test_names_and_shapes_must_be_the_networks(saved: Path) -> None:
    with torch.device("meta"):
        network = Small()
    for case in ("stage2-bf16", "stage3"):
        found = DeepSpeedCheckpoint(saved / case)
        names = matched(found, network, "")
        assert names.keys() == network.state_dict().keys()
        # of two names the one with master weights: the other may be there in bf16
        assert names["again.weight"] == names["second.weight"] == "second.weight"
    network.last = torch.nn.Linear(7, 4, device="meta")
    network.new = torch.nn.Parameter(torch.zeros(2))
    del network.count
    with pytest.raises(ConfigError) as refused:
        matched(found, network, "")
    for part in ("last.weight is (3, 7) there and (4, 7) in the run", "stage3", "lacks new",
                 "last.bias is (3,)", "the run's network has no count"):  # fmt: skip
        assert part in str(refused.value)


@pytest.mark.parametrize("case", ["stage2", "stage3"])
def test_steps_may_be_counted_in_the_groups(saved: Path, case: str) -> None:
    """As DeepSpeed's own FusedAdam does, which needs a GPU."""
    found = DeepSpeedCheckpoint(saved / case)
    for rank in found._optimizers:
        base = rank[found._base]
        for number, group in enumerate(base["param_groups"]):
            group["step"] = 7 + number
        for state in base["state"].values():
            del state["step"]
    assert (found.step("second.weight"), found.step("one")) == (7, 8)
    for state in found._optimizers[0][found._base]["state"].values():
        del state["exp_avg_sq"]
    with pytest.raises(CheckpointError, match=r"no exp_avg_sq of second.weight"):
        found.moment("second.weight", "exp_avg")


def test_a_missing_file_of_a_rank_is_one_clear_message(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "saved"
    shutil.copytree(saved / "stage3", copy)
    (copy / f"global_step{STEPS}" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"by 2 ranks, and of .* rank 1's is missing"):
        DeepSpeedCheckpoint(copy)
    shutil.copytree(saved / "stage3", copy, dirs_exist_ok=True)
    (copy / f"global_step{STEPS}" / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"rank_0_mp_rank_00_model_states.pt is missing"):
        DeepSpeedCheckpoint(copy)


def test_a_file_that_names_another_class_is_refused(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "saved"
    shutil.copytree(saved / "stage2", copy)
    file = copy / f"global_step{STEPS}" / "mp_rank_00_model_states.pt"
    content = torch.load(file, weights_only=True)
    torch.save({**content, "of_the_user": Fraction(1, 3)}, file)
    with pytest.raises(CheckpointError, match=r"model_states.pt names fractions.Fraction: only"):
        DeepSpeedCheckpoint(copy)


def test_a_checkpoint_of_deepspeed_becomes_a_run_that_goes_on(
    trained: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted"
    words = ["checkpoint", "convert", str(saved / "run"), str(trained), "--out", str(out)]
    assert main(words) == 2
    assert "--network flow or dequantiser, and --prefix" in capsys.readouterr().err
    words += ["--network", "flow"]
    assert main(words) == 2
    refused = capsys.readouterr().err
    assert "of another network" in refused
    assert "lacks bijection" in refused
    assert "parts.flow." in refused
    assert not out.exists()

    before = checkpoint_reader.digest(newest(trained))
    assert main([*words, "--prefix", "parts.flow."]) == 0
    assert checkpoint_reader.digest(newest(trained)) == before
    path, expected = newest(out), torch.load(saved / "run.pt", weights_only=True)
    after = checkpoint_reader.digest(path)
    assert {k for k in before if before[k] != after[k]} == {
        "networks.flow", "optimizers.flow", "ema", "total"
    }  # fmt: skip
    names = {name[11:]: v for name, v in expected.items() if name.startswith("parts.flow.")}
    old, new = read_tensors(newest(trained)), read_tensors(path)
    weights = {k[14:]: k for k in old if k.startswith("networks.flow/")}
    assert new.keys() == {k for k in old if not k.startswith("optimizers.flow/")} | {
        f"optimizers.flow/{name}/{key}" for name in names for key in ("step", *MOMENTS)
    }
    for key, place in weights.items():
        want = names[key]["weights"] if key in names else old[place]  # buffers are the same
        for each in (place, f"ema/0.050/flow.{key}", f"ema/0.100/flow.{key}"):
            assert torch.equal(new[each], want), each
        assert key not in names or not torch.equal(new[place], old[place])
    for place in [key for key in old if key.startswith("ema/") and "/dequantiser." in key]:
        assert torch.equal(new[place], old[place]), place
    for name, values in names.items():
        for key in MOMENTS:
            assert torch.equal(new[f"optimizers.flow/{name}/{key}"], values[key]), name
        assert new[f"optimizers.flow/{name}/step"] == STEPS
    assert main([*words, "--prefix", "parts.flow."]) == 2  # it is there already

    # Without learning the weights stay, so that what the recipe goes on from is seen.
    recipe = command(1, "--config", str(out / "config.json"), "train.samples=80", "optim.lr=0",
                     recipe=RECIPE)  # fmt: skip
    run(recipe, tmp_path)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "converted"
    assert [e["samples"] for e in events if e["event"] == "resumed"] == [48]
    last = read_tensors(newest(out))
    assert newest(out).name == "samples-000000000080"
    for key, place in weights.items():
        assert torch.equal(last[place], new[place]), key
    steps = {k: float(v) for k, v in last.items() if k.endswith("/step")}
    assert {v for k, v in steps.items() if k.startswith("optimizers.flow/")} == {STEPS + 2}
    assert {v for k, v in steps.items() if k.startswith("optimizers.dequantiser/")} == {3 + 2}


def test_what_deepspeed_did_not_train_goes_on_without_moments(
    trained: Path, saved: Path, tmp_path: Path
) -> None:
    source, name = DeepSpeedCheckpoint(saved / "run"), "parts.flow.embedding.weight"
    value = source.tensor(name)
    source.fixed[name] = source.shapes.pop(name)
    source._fixed_pieces[name] = [value]
    path, untrained = convert(source, trained, tmp_path / "out", "flow", "parts.flow.")
    assert untrained == ["embedding.weight"]
    tensors = read_tensors(path)
    assert torch.equal(tensors["networks.flow/embedding.weight"], value)
    assert not [key for key in tensors if key.startswith("optimizers.flow/embedding.weight/")]


def test_networks_with_the_same_names_are_told_apart() -> None:
    assert key_in_network("ema/0.050/critic.0.weight", "critic") == "0.weight"
    assert key_in_network("networks.critic/0.weight", "critic") == "0.weight"
    for place in ("ema/0.050/generator.0.weight", "networks.generator/0.weight",
                  "optimizers.critic/0.weight/step", "stream/position"):  # fmt: skip
        assert key_in_network(place, "critic") == ""


# ---- to safetensors ------------------------------------------------------------------------------


def test_weights_and_averages_as_safetensors(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(newest(trained))
    whose = {"ema/0.050/": [], "ema/0.100/": ["--average", "0.100"]}
    own = {k[9:].replace("/", ".", 1): v for k, v in tensors.items() if k.startswith("networks.")}
    for prefix, words in {**whose, "": ["--weights"]}.items():
        file = tmp_path / f"out{len(prefix)}.safetensors"
        assert main(["checkpoint", "convert", str(trained), str(file), *words]) == 0
        with safe_open(file, framework="pt") as opened:
            found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            assert opened.metadata()["samples"] == "48"
        assert found.keys() == own.keys()
        for key, value in found.items():
            want = tensors[f"{prefix}{key}"] if prefix else own[key]
            assert torch.equal(value, want), key
    words = ["checkpoint", "convert", str(newest(trained)), str(tmp_path / "x.safetensors")]
    assert main([*words, "--average", "0.07"]) == 2
    assert "no average '0.07': --average 0.050 or 0.100" in capsys.readouterr().err
    assert main([*words, "--prefix", "parts."]) == 2
