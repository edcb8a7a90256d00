"""What launcher and config say together, or contradict each other in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from genus import config as config_module
from genus.errors import ConfigError
from genus.loop import TrainConfig
from genus.optim.build import AdamWConfig, MuonConfig
from genus.strategies.choice import Choice, choose
from genus.strategies.making import open_world

ROOT = Path(__file__).parents[2]
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HYBRID = {
    f"PARALLELISM_CONFIG_DP_{what}_SIZE": n for what, n in (("REPLICATE", "2"), ("SHARD", "8"))
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)


def said(file: Path, **content: object) -> dict[str, str]:
    file.write_text(json.dumps(content))
    return {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Choice()),
        ({"ACCELERATE_USE_FSDP": "false"}, Choice()),
        (FSDP, Choice("fsdp2")),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, Choice("fsdp2", reshard=False)),
        ({**FSDP, **HYBRID, "WORLD_SIZE": "16"}, Choice("hybrid", replicas=2)),
    ],
)
def test_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Choice
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose() == expected
    assert choose(expected.name) == expected


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeeds_stage_from_variables_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: int
) -> None:
    name = f"zero{stage}" if stage else "ddp"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    choice = choose()
    assert (choice.name, choice.stage) == (name, stage)
    assert choice.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    for key, value in said(tmp_path / "ds.json", zero_optimization={"stage": stage}).items():
        monkeypatch.setenv(key, value)
    assert choose().name == name


@pytest.mark.parametrize("file", sorted((ROOT / "launch" / "deepspeed").glob("*.json")))
def test_the_files_of_launch(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    assert choose().name == file.stem.partition("-")[0]
    assert ("offload_optimizer" in choose().deepspeed["zero_optimization"]) == (
        "offload" in file.stem
    )
    assert (
        f"launch/deepspeed/{file.name}"
        in (ROOT / "launch" / "accelerate" / f"{file.stem}.yaml").read_text()
    )
    assert open_world(TrainConfig(), AdamWConfig()).choice == choose()


@pytest.mark.parametrize(
    ("variables", "strategy", "message"),
    [
        (FSDP, "ddp", "train.strategy=ddp contradicts the launcher, which says fsdp2"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero3", "which says zero2"),
        ({**FSDP, "FSDP_VERSION": "1"}, "auto", "set fsdp_version: 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "auto", "zero2-offload.yaml"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "auto", "train.recompute=true"),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, "auto", "true or false"),
        ({}, "zero4", "train.strategy=zero4: take one of auto, ddp"),
        (
            {**FSDP, **HYBRID, "WORLD_SIZE": "32"},
            "auto",
            "2 replicas of 8 shards, and there a",
        ),
        ({**FSDP, "PARALLELISM_CONFIG_TP_SIZE": "2"}, "auto", "tensor, context and sequence"),
        ({"WORLD_SIZE": "4"}, "hybrid", "4 processes, and LOCAL_WORLD_SIZE.* is not said"),
        ({"WORLD_SIZE": "4", "LOCAL_SIZE": "3"}, "hybrid", "those of a node, is 3"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "/no/file"}, "auto", "can't read"),
    ],
)
def test_contradictions_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], strategy: str, message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        choose(strategy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, r"'optimizer' is optim.\*'s business"),
        ({"fp16": {"enabled": True}}, "'fp16' is train.precision's business"),
        ({"zero_optimization": {"stage": 5}}, "stage is 5: 0, 1, 2 or 3"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param to nvme"),
        ({"zero_optimization": {"mics_shard_size": 8}}, "mics_shard_size: not supported"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights: not"),
        ({"train_batch_size": 7}, "train_batch_size: 7, which contradicts this run's 64"),
        ({"gradient_clipping": 0.3}, "gradient_clipping: 0.3, which contradicts this run's 1.0"),
        ({"gradient_accumulation_steps": 4}, "contradicts train.micro"),
        ({"bf16": {"enabled": True}}, "says bf16: True, and the run's precision is fp32"),
    ],
)
def test_a_deepspeed_file_that_decides_too_much(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, section: dict[str, object], message: str
) -> None:
    content = {"zero_optimization": {"stage": 2}, **section}
    for key, value in said(tmp_path / "ds.json", **content).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=message):
        open_world(TrainConfig(), AdamWConfig())


def test_a_deepspeed_file_that_says_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = {"train_batch_size": 64, "gradient_clipping": 1.0, "fp16": {"enabled": False}}
    for key, value in said(tmp_path / "d.json", zero_optimization={"stage": 1}, **content).items():
        monkeypatch.setenv(key, value)
    assert open_world(TrainConfig(), AdamWConfig()).choice.stage == 1


def test_muon_under_zero_is_refused() -> None:
    train = replace(TrainConfig(), strategy="zero2")
    with pytest.raises(ConfigError, match="MuonConfig needs matrices: take optim=AdamWConfig"):
        open_world(train, MuonConfig())


def test_deepspeeds_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `deepspeed recipe.py --deepspeed_config FILE` hands them on."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    file = str(ROOT / "launch" / "deepspeed" / "zero1.json")
    words = ["--local_rank=0", "--deepspeed", "--deepspeed_config", file, "lr=0.5"]
    presets = {"only": AdamWConfig()}
    command = config_module.parse(AdamWConfig, presets, default="only", argv=words)
    assert command.config.lr == 0.5
    assert choose().name == "zero1"
    with pytest.raises(SystemExit):
        config_module.parse(
            AdamWConfig, presets, default="only", argv=["--deepspeed_config", "other.json"]
        )


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_hybrid_copies_between_nodes(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """torchrun says the one, DeepSpeed's launcher the other."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv(variable, "4")
    assert choose("hybrid") == Choice("hybrid", replicas=4)
