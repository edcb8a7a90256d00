"""The container image: what its files promise (fast), what a real build holds (marker docker)."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
NEVER = {"data", "runs", "wandb", ".git", ".venv", ".ci", "tests"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(package: str) -> str:
    """The version of constraints.txt."""
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_stages_lead_from_deps_to_train() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert stages == [
        ("${BASE_IMAGE}", "deps"),
        ("deps", "ethernet"),
        ("deps", "fabric"),
        ("${NETWORK}", "train"),
    ]


def test_the_default_base_has_the_torch_that_is_tested() -> None:
    base = re.search(r"^ARG BASE_IMAGE=(\S+):(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    assert base[2].split("-")[0] == pinned("torch")
    assert base[2].endswith("-devel"), "DeepSpeed can't be imported without nvcc"
    assert f"{base[1]}:{base[2]}" in (ROOT / "docs" / "containers.md").read_text()


def test_no_version_is_said_twice() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    scripts = "".join(path.read_text() for path in DOCKER.glob("*.sh"))
    assert version not in DOCKERFILE + scripts
    assert pinned("torch") not in DOCKERFILE.split("ARG BASE_IMAGE=")[1].split("\n", 1)[1]
    assert not re.search(r"pip install .*==", DOCKERFILE + scripts.replace("torch==$torch", ""))


def test_every_step_of_the_build_ends_it_when_it_fails() -> None:
    """SHELL would not do: the OCI format (podman, buildah) has no place for it."""
    assert "SHELL" not in DOCKERFILE
    runs = re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    assert len(runs) == 4
    for run in runs:
        assert ";" not in run or "set -eu;" in run


def test_the_image_runs_as_a_user_with_a_number() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    number = re.search(r"^ARG USER_ID=(\d+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["${USER_ID}:${USER_ID}"]
    assert number is not None
    assert int(number[1]) > 0


def test_nothing_but_what_is_named_gets_into_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert not let_in & NEVER
    assert "**/.*" in rules[len(let_in) :], "hidden files inside the folders stay out, too"
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert {source for source in copied if not source.startswith("docker/")} <= let_in


def test_the_base_image_says_the_versions_that_it_brings() -> None:
    ours = ["# tested together", "torch==2.13.0", "einops==0.8.2", "tqdm==4.70.1"]
    base = ["torch @ file:///opt/torch.whl", "Einops==0.8.1 # ours", "", "nv_tool==3"]
    lines = load("pins").pins(ours, base, "2.12.0a0+nv")
    assert lines == ["Einops==0.8.1", "nv_tool==3", "torch==2.12.0a0+nv", "tqdm==4.70.1"]


def test_the_image_needs_what_the_project_needs_and_asks_for_no_torch_of_its_own() -> None:
    needed = load("pins").requirements(ROOT / "pyproject.toml")
    assert [line for line in needed if line.startswith("torch>=")]
    assert [line for line in needed if line.startswith("sacrebleu")]
    assert f"torch=={pinned('torch')}" not in needed


@pytest.mark.parametrize("change", ["nothing", "version", "place", "gone"])
def test_another_torch_ends_the_build(tmp_path: Path, change: str) -> None:
    def torch_unchanged(verb: str, folder: Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-S", str(DOCKER / "torch_unchanged.py"), verb]
        return subprocess.run(
            [*words, str(tmp_path / "record.json")],
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )

    for folder, version in (("base", "2.13.0+cpu"), ("other", "2.13.0+cpu")):
        (tmp_path / folder / "torch").mkdir(parents=True)
        (tmp_path / folder / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    assert torch_unchanged("record", tmp_path / "base").returncode == 0
    if change == "version":
        (tmp_path / "base" / "torch" / "__init__.py").write_text("__version__ = '2.15.0'\n")
    place = {"place": "other", "gone": "nowhere"}.get(change, "base")
    done = torch_unchanged("check", tmp_path / place)
    assert done.returncode == (0 if change == "nothing" else 1), done.stderr
    says = {
        "nothing": "as in the base image",
        "version": "2.13.0+cpu",
        "place": "not the base image's any more",
        "gone": "must bring torch",
    }
    assert says[change] in done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    words = [str(Path(sys.executable).parent / "hadolint"), str(DOCKER / "Dockerfile")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout, done.stdout


def test_the_entrypoint_gives_the_exit_code_of_the_command() -> None:
    words = [str(DOCKER / "entrypoint.sh"), "sh", "-c", "exit 7"]
    assert subprocess.run(words, stdin=subprocess.DEVNULL).returncode == 7
    if os.geteuid() == 0:
        words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *words]
        assert subprocess.run(words, stdin=subprocess.DEVNULL).returncode == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="a process 1 of its own needs root")
def test_docker_stop_lets_orphaned_ranks_save(tmp_path: Path) -> None:
    """The launcher dies of SIGTERM at once; its rank saves and the container outlives it."""
    rank = "trap 'sleep 0.3; touch saved; exit' TERM; touch ready; while :; do sleep 0.05; done"
    launcher = f'bash -c "{rank}" & sleep 600 & wait'
    words = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        str(DOCKER / "entrypoint.sh"),
    ]
    container = subprocess.Popen(
        [*words, "bash", "-c", launcher], cwd=tmp_path, stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert container.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert container.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        container.kill()
    assert (tmp_path / "saved").exists()


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_the_image_builds_and_passes_its_smoke_test(tmp_path: Path) -> None:
    """With the fabric stage, so that every stage is built; its base imitates NGC's constraints."""
    log = tmp_path / "build.log"
    with log.open("wb") as output:
        build = subprocess.Popen(
            ["bash", str(DOCKER / "build-here.sh")],
            env={**os.environ, "network": "fabric"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = build.wait(timeout=1500)
        finally:
            if build.poll() is None:  # all of it, and the script still cleans up
                os.killpg(build.pid, signal.SIGTERM)
                build.wait(timeout=120)
    said = log.read_text(errors="replace")
    print(said)
    assert code == 0, said
    assert "smoke: passed" in said
