"""Command line and JSON of configs."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genus import config
from genus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A union's member."""

    channels: int = 4
    """Width."""
    mults: tuple[int, ...] = (1, 2)
    """Of each resolution."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """A member of a union in a union."""

    size: int = 2
    """Pixels."""


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """Another one, with a field that is named like JSON's own key might be."""

    kind: str = "same"
    """Padding."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Another member."""

    depth: int = 2
    """Layers."""
    stem: PatchConfig | ConvConfig = field(default_factory=PatchConfig)
    """First layer."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """All leaf types."""

    lr: float = 1e-4
    """Rate."""
    fused: bool = False
    """A flag."""
    method: Literal["adam", "muon"] = "adam"
    """A choice."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Two."""
    note: str = ""
    """Free text."""
    clip: float | None = None
    """Optional."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError(f"optim.lr={self.lr}: must not be negative")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A recipe's."""

    network: UNetConfig | DiTConfig = field(default_factory=UNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 10
    """Length."""


PRESETS = {
    "small": Config(network=UNetConfig(channels=8)),
    "large": Config(network=DiTConfig(depth=28), optim=OptimConfig(lr=3e-4)),
}


def parse(*words: str) -> Config:
    return config.parse(Config, PRESETS, "small", words).config


def test_presets_and_flags() -> None:
    assert parse() == PRESETS["small"]
    assert parse("--preset", "large") == parse("--preset=large") == PRESETS["large"]
    command = config.parse(Config, PRESETS, "small", ["--preset", "large", "--dry-run", "steps=3"])
    assert (command.preset, command.dry_run, command.config.steps) == ("large", True, 3)
    assert not config.parse(Config, PRESETS, "small", []).dry_run


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optim.lr=-0.0", "optim.lr", -0.0),
        ("optim.lr=1e-323", "optim.lr", 1e-323),
        ("optim.lr=0.30000000000000004", "optim.lr", 0.1 + 0.2),
        ("optim.lr=3", "optim.lr", 3.0),
        ("--optim.lr=3", "optim.lr", 3.0),
        ("steps=-7", "steps", -7),
        ("steps=2e8", "steps", 200_000_000),
        ("steps=1_000", "steps", 1000),
        ("optim.fused=true", "optim.fused", True),
        ("optim.fused=True", "optim.fused", True),
        ("optim.fused=false", "optim.fused", False),
        ("optim.method=muon", "optim.method", "muon"),
        ("optim.betas=0.5,0.75", "optim.betas", (0.5, 0.75)),
        ("optim.betas=(0.5, 0.75)", "optim.betas", (0.5, 0.75)),
        ("network.mults=3", "network.mults", (3,)),
        ("network.mults=[1,2,-4]", "network.mults", (1, 2, -4)),
        ("network.mults=()", "network.mults", ()),
        ("optim.note=a,b=c d", "optim.note", "a,b=c d"),
        ("optim.note=--dry-run", "optim.note", "--dry-run"),
        ("optim.note=", "optim.note", ""),
        ("optim.clip=1.5", "optim.clip", 1.5),
        ("optim.clip=None", "optim.clip", None),
    ],
)
def test_every_leaf_type(word: str, key: str, value: object) -> None:
    found = {k: leaf for k, _, leaf in config.leaf_fields(parse(word))}
    assert repr(found.pop(key)) == repr(value)  # repr: -0.0, True and 1 are told apart
    start = {k: leaf for k, _, leaf in config.leaf_fields(PRESETS["small"])}
    assert found.items() <= start.items()


def test_union_members_in_any_order() -> None:
    expected = Config(network=DiTConfig(depth=3))
    for words in (
        ["network=DiTConfig", "network.depth=3"],
        ["network.depth=3", "network=dit"],
        ["network.depth=9", "network=dit", "network.depth=3"],
    ):
        assert parse(*words) == expected
    inner = Config(network=DiTConfig(depth=3, stem=ConvConfig(kind="valid")))
    words = ["network.stem.kind=valid", "network.stem=conv", "network.depth=3", "network=dit"]
    assert parse(*words) == inner == parse(*reversed(words))


def test_choosing_the_chosen_member_keeps_its_preset() -> None:
    assert parse("network=unet") == PRESETS["small"]
    assert parse("network=unet", "--preset=large").network == UNetConfig()


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lrr=3"], "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["lr=3"], "did you mean 'optim.lr'?"),
        (["netwrk=dit"], "did you mean 'network'?"),
        (["network.depth=3"], "that is a key of DiTConfig; add network=DiTConfig"),
        (["network=dot"], "no value for network 'dot'; did you mean 'dit'?"),
        (["--preset", "larg"], "no preset 'larg'; did you mean 'large'?"),
        (["--preset"], "--preset needs a value"),
        (["--config", "/no/such/file"], "can't read the config file /no/such/file"),
        (["--preset=large", "--config=x"], "--preset and --config both"),
        (["optim.lr"], "can't read 'optim.lr': write overrides as key=value"),
        (["optim.lr=abc"], "could not convert string to float: 'abc'"),
        (["optim.lr=-1"], "optim.lr=-1.0: must not be negative"),
        (["steps=1.5"], "--steps"),
        (["steps=1e-1"], "--steps"),
        (["steps=1e400"], "--steps"),
        (["optim.fused=maybe"], "invalid choice 'maybe'"),
        (["optim.method=sgd"], "invalid choice 'sgd'"),
        (["optim.betas=0.5"], "--optim.betas"),
        (["optim.betas=.5,.6,.7"], ".7"),
        (["network.mults=a"], "--network.mults"),
    ],
)
def test_wrong_requests(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    text = complaint(capsys, *words)
    assert said in text
    assert "Traceback" not in text


def test_only_the_first_process_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert complaint(capsys, "optim.lrr=3") == ""
    assert complaint(capsys, "optim.lr=abc") == ""


def test_help_lists_presets_choices_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in ("small (default), large", "UNetConfig, DiTConfig", "optim.lr", "Rate."):
        assert part in text


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_config import Config, PRESETS
from genus import config
print(config.dumps(config.parse(Config, PRESETS, "small").config))
"""


def test_as_a_command(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    source = str(Path(config.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    wrong = run("steps=3", "optim.lrr=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: no key 'optim.lrr'; did you mean 'optim.lr'?\n"
    right = run("steps=3", "optim.lr=0.5")
    assert right.returncode == 0
    assert config.loads(Config, right.stdout) == parse("steps=3", "optim.lr=0.5")


# ---- JSON ----------------------------------------------------------------------------------------

floats = st.floats(allow_nan=False, min_value=0)


@given(
    lr=floats,
    clip=st.none() | st.floats(allow_nan=False),
    betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    note=st.text(),
    steps=st.integers(),
    network=st.builds(UNetConfig, channels=st.integers(), mults=st.lists(st.integers()).map(tuple))
    | st.builds(DiTConfig, stem=st.builds(ConvConfig, kind=st.text()) | st.just(PatchConfig())),
)
def test_json_round_trip_to_the_bit(network: Any, steps: int, **optim: Any) -> None:
    original = Config(network=network, steps=steps, optim=OptimConfig(**optim))
    again = config.loads(Config, config.dumps(original))
    assert again == original
    assert repr(again) == repr(original)  # == does not tell 0.0 from -0.0


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-323, 5e-324, 1.7976931348623157e308, math.inf])
def test_json_floats(value: float) -> None:
    again = config.loads(Config, config.dumps(Config(optim=OptimConfig(lr=value))))
    assert again.optim.lr.hex() == value.hex()
    nan = config.loads(Config, config.dumps(Config(optim=OptimConfig(clip=math.nan))))
    assert nan.optim.clip is not None
    assert math.isnan(nan.optim.clip)


def test_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(config.dumps(PRESETS["large"]))
    assert parse("--config", str(path)) == PRESETS["large"]
    assert parse(f"--config={path}", "steps=3") == dataclasses.replace(PRESETS["large"], steps=3)


def test_json_of_an_older_version_takes_new_defaults_and_whole_floats() -> None:
    loaded = config.loads(Config, '{"optim": {"lr": 1}}')
    assert loaded == Config(optim=OptimConfig(lr=1.0))
    assert isinstance(loaded.optim.lr, float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "the config: expected an object"),
        ('{"optim": {"lrr": 1}}', "no key 'optim.lrr'; did you mean 'lr'?"),
        ('{"network": {"class": "GAN"}}', "network: class is 'GAN', not one of UNetConfig, DiT"),
        ('{"network": {"depth": 3}}', "network: class is None"),
        ('{"optim": 3}', "optim: expected an object, found 3"),
        ('{"steps": 1.5}', "steps: expected int, found 1.5"),
        ('{"steps": true}', "steps: expected int, found True"),
        ('{"steps": null}', "steps: expected int, found None"),
        ('{"optim": {"lr": "x"}}', "optim.lr: expected float, found 'x'"),
        ('{"optim": {"lr": 1' + 400 * "0" + "}}", "optim.lr: expected float"),
        ('{"optim": {"method": "sgd"}}', "optim.method: 'sgd' is not one of adam, muon"),
        ('{"optim": {"betas": [1.0]}}', "optim.betas: expected 2 values"),
        ('{"optim": {"betas": 1.0}}', "optim.betas: expected a list"),
        ('{"network": {"class": "UNetConfig", "mults": [1, "a"]}}', "network.mults: expected int"),
    ],
)
def test_wrong_json(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.loads(Config, text)
    assert said in str(error.value)


def test_wrong_file_is_named(tmp_path: Path) -> None:
    for name, content in (("a.json", b"{"), ("b.json", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            config.load(Config, tmp_path / name)


def test_differences() -> None:
    old = PRESETS["small"]
    assert config.differences(old, old) == []
    assert config.differences(old, parse("optim.lr=1", "steps=3")) == [
        "optim.lr: 0.0001 -> 1.0",
        "steps: 10 -> 3",
    ]
    assert config.differences(old, parse("network=dit")) == [
        "network: UNetConfig -> DiTConfig",
        "network.channels: 8 -> absent",
        "network.mults: (1, 2) -> absent",
        "network.stem: absent -> PatchConfig",
        "network.depth: absent -> 2",
        "network.stem.size: absent -> 2",
    ]


def test_leaves() -> None:
    assert config.count_leaves(Config) == 2 + 6 + 1  # of each union its largest member
    keys = [key for key, _, _ in config.leaf_fields(PRESETS["large"])]
    assert keys[:3] == ["network.depth", "network.stem.size", "optim.lr"]
