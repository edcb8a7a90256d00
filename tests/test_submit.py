"""What genus submit renders and refuses; the jobs themselves are tested in tests/slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from genus import config
from genus.cli import main
from genus.commands_submit import _seconds
from genus.errors import ConfigError
from genus.launching import launcher_for
from genus.recipe_command import command_of, import_recipe
from genus.slurm import Queued, _queued, job_of
from genus.slurm_script import Job, directives, render
from genus.snapshot import hash_of, source_of, take_snapshot
from genus.sweep import members

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "launch" / "slurm" / "job.sbatch"


def job(**changes: object) -> Job:
    made = {"name": "genus-a", "run": Path("/runs/a"), "number": 1, "recipe": "recipes/x.py",
            "package": "platform", "nodes": 4, "gpus_per_node": "8", "processes": 8,
            "time": "12:00:00"}  # fmt: skip
    return Job(**{**made, **changes})  # type: ignore[arg-type]


def bash_accepts(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


# ---- the script ----------------------------------------------------------------------------------


def test_directives() -> None:
    assert directives(job(flags=["-p", "big", "--account=me and you", "--exclusive"])) == [
        "--job-name=genus-a", "--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8",
        "--time=12:00:00", "--signal=TERM@120", "--requeue", "--open-mode=append",
        "--output=/runs/a/slurm/job-%j.out", "--dependency=singleton", "-p big",
        '--account="me and you"', "--exclusive",
    ]  # fmt: skip
    assert "--dependency=singleton,afterok:3" in directives(job(dependency="afterok:3"))
    sweep = directives(job(sweep=6, run=Path("/runs/a.sweep")))
    assert "--array=0-5" in sweep
    assert "--output=/runs/a.sweep/%a/slurm/job-%A_%a.out" in sweep
    assert not [line for line in sweep if "singleton" in line]  # would run them one by one
    with pytest.raises(ConfigError, match="'tiny' belongs to no flag"):
        directives(job(flags=["--qos=x", "tiny"]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sweep": 2},
        {"with_accelerate": False, "processes": 1, "nodes": 1, "gpus_per_node": ""},
        {"container": "nvcr.io#nvidia/pytorch:25.01-py3", "mounts": ["/a:/a", "/b c:/b"]},
        {"run": Path("/runs/with a 'quote'"), "recipe": "my recipes/x.py"},
    ],
)
def test_scripts_are_bash(changes: dict[str, object]) -> None:
    script = render(TEMPLATE, job(**changes))
    assert bash_accepts(script)
    assert "@@" not in script


def test_a_container_is_of_the_steps_not_of_the_script() -> None:
    script = render(TEMPLATE, job(container="img.sqsh", mounts=["/runs:/runs", "/data:/data"]))
    (line,) = [line for line in script.splitlines() if line.strip().startswith("srun")]
    assert "--container-image=img.sqsh --container-mounts=/runs:/runs,/data:/data" in line
    assert "#SBATCH --container" not in script
    assert "exec python -m accelerate" in script  # the image's own


def test_a_site_edits_the_template(tmp_path: Path) -> None:
    own = tmp_path / "own.sbatch"
    own.write_text("#!/bin/bash\n@@{directives}\nmodule load x; echo @@{run} $HOME ${A[@]}\n")
    script = render(own, job())
    assert script.endswith("module load x; echo /runs/a $HOME ${A[@]}\n")
    own.write_text("@@{rum}")
    with pytest.raises(ConfigError, match=r"there is no @@{rum}"):
        render(own, job())
    with pytest.raises(ConfigError, match="can't read the template"):
        render(tmp_path / "none", job())


# ---- what is launched ----------------------------------------------------------------------------


def test_launchers(tmp_path: Path) -> None:
    assert launcher_for(1, 1, False, "auto", None, {}).config is None
    gpus = launcher_for(16, 2, True, "auto", None, {})
    assert gpus.config is not None
    assert 'mixed_precision: "bf16"' in gpus.config
    assert launcher_for(16, 2, True, "fp32", None, {}).precision == "no"

    file = tmp_path / "cpu.yaml"
    file.write_text("distributed_type: MULTI_CPU\n")
    with pytest.raises(ConfigError, match="starts one process, but the job asks for 4"):
        launcher_for(4, 1, False, "auto", file, {})
    file.write_text('distributed_type: "NO"\nmixed_precision: fp16\n')
    assert launcher_for(1, 1, True, "auto", file, {}).precision == "fp16"


def test_deepspeed_gets_its_file_from_the_snapshot(tmp_path: Path) -> None:
    own = tmp_path / "zero.json"
    own.write_text("{}")
    file = tmp_path / "zero.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n"
        f"  deepspeed_config_file: {own}\n  zero3_init_flag: false\n"
    )
    text = launcher_for(4, 1, True, "auto", file, {"launch/zero.json": own}).config
    assert text is not None
    assert "  deepspeed_config_file: @SUBMISSION@/code/launch/zero.json\n" in text
    assert "  deepspeed_multinode_launcher: standard\n" in text
    own.unlink()
    with pytest.raises(ConfigError, match="which is not there"):
        launcher_for(4, 1, True, "auto", file, {})


# ---- sweeps --------------------------------------------------------------------------------------


def test_sweeps() -> None:
    assert [(m.suffix, m.overrides) for m in members([])] == [("", ())]
    found = members(["optim.lr=1e-4,3e-4", "network.mults=(1,2),(1,2,2)"])
    assert [member.suffix for member in found] == [
        "-lr-1e-4-mults-1_2", "-lr-1e-4-mults-1_2_2", "-lr-3e-4-mults-1_2",
        "-lr-3e-4-mults-1_2_2",
    ]  # fmt: skip
    assert found[3].overrides == ("optim.lr=3e-4", "network.mults=(1,2,2)")
    with pytest.raises(ConfigError, match="write key=value,value"):
        members(["optim.lr"])
    with pytest.raises(ConfigError, match="a key twice"):
        members(["a=1", "a=2"])
    with pytest.raises(ConfigError, match="the same name"):
        members(["data.url=a/b,a_b"])


# ---- snapshot ------------------------------------------------------------------------------------


def test_a_snapshot_is_what_git_would_know(tmp_path: Path) -> None:
    top = tmp_path / "mine"
    (top / "sub").mkdir(parents=True)
    (top / "recipe.py").write_text("print(1)\n")
    (top / ".gitignore").write_text("data/\n")
    (top / "sub" / "new.py").write_text("new = 1\n")
    (top / ".env").write_text("KEY=secret\n")
    (top / "data").mkdir()
    (top / "data" / "large.bin").write_bytes(b"x" * 1000)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "recipe.py", ".gitignore"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=top, check=True)
    (top / "recipe.py").write_text("print(2)\n")

    source = source_of(top / "recipe.py")
    assert (source.recipe, source.package) == ("recipe.py", "platform")
    take_snapshot(source, tmp_path / "1")
    code = tmp_path / "1" / "code"
    assert (code / "recipe.py").read_text() == "print(2)\n"
    assert (code / "sub" / "new.py").exists()
    assert not (code / "data").exists()
    assert not (code / ".env").exists()
    assert (code / "platform" / "genus" / "loop.py").exists()  # of this installation
    about = json.loads((tmp_path / "1" / "snapshot.json").read_text())
    assert about["git_dirty"]
    assert hash_of(code, about["files"]) == about["hash"]
    assert "+print(2)" in (tmp_path / "1" / "code.diff").read_text()


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("", 0), ("30", 1800), ("1:30", 90), ("12:00:00", 43200), ("1-0", 86400), ("2-1:30", 178200),
     ("0-0:0:9", 9), ("UNLIMITED", 0)],
)  # fmt: skip
def test_time_limits(limit: str, seconds: float) -> None:
    assert _seconds(limit) == seconds


def test_a_large_snapshot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genus.snapshot.LARGEST_MB", 0.0001)
    (tmp_path / "recipe.py").write_text("")
    (tmp_path / "huge.py").write_text("#" * 10_000_000)
    with pytest.raises(ConfigError, match=r"let git ignore .* huge.py \(10 MB\)"):
        source_of(tmp_path / "recipe.py")


# ---- the command ---------------------------------------------------------------------------------


def test_the_recipes_own_parser_is_asked() -> None:
    module = import_recipe(ROOT / "recipes" / "flow.py")
    command = command_of(module, ["--preset", "tiny", "optim.lr=0.5"])
    assert command.preset == "tiny"
    assert command.config.optim.lr == 0.5
    with pytest.raises(SystemExit):
        command_of(module, ["optim.lrr=0.5"])
    assert module.config is config  # as it was


def submit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["submit", str(ROOT / "recipes" / "diffusion.py"), *words])
    told = capsys.readouterr()
    return code, told.out + told.err


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--nodes", "4", "--gpus-per-node", "a100:4", "--time", "12:00:00", "--qos", "high"]
    code, told = submit(capsys, *flags, "--dry-run", "--", "--preset", "tiny", "run.name=demo")
    assert code == 0
    assert bash_accepts(told)
    assert "#SBATCH --gpus-per-node=a100:4\n" in told
    assert "#SBATCH --qos high\n" in told
    assert f"RUN={tmp_path}/runs/demo\n" in told
    assert "export PROCESSES=4 " in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--array=0-3"], "--array is genus submit's own affair: use --sweep"),
        (["--nodes=3", "--", "--preset", "tiny"], "3 processes can't share 16 lanes"),
        (["--gpus-per-node=many"], "--gpus-per-node many: write a number"),
        (["--", "--preset", "tiny", "--dry-run"], "--dry-run belongs before the --"),
        (["--restarts=-1"], "--restarts not negative"),
        (["--time=3", "--grace=91"], "in the first half of a job of 180 s"),
    ],
)
def test_wrong_requests(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = submit(capsys, *words)
    assert code == 2
    assert message in told


def test_without_slurm_submitting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git") or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    code, told = submit(capsys, "--", "--preset", "tiny")
    assert code == 2
    assert "there is no sbatch here: submit from a login node" in told
    assert not (tmp_path / "runs").exists()


# ---- the queue -----------------------------------------------------------------------------------


def test_queue_entries_of_old_and_new_slurm() -> None:
    old = {"job_id": 12, "job_state": "RUNNING", "state_reason": "None", "nodes": "n[1-2]",
           "array_job_id": 0, "array_task_id": None, "array_task_string": ""}  # fmt: skip
    number = {"set": True, "infinite": False}
    new = {"job_id": {**number, "number": 13}, "job_state": ["PENDING"], "nodes": "",
           "state_reason": "Resources", "array_job_id": {**number, "number": 13},
           "array_task_id": {"set": False}, "array_task_string": "1-3,7%2"}  # fmt: skip
    queued = [_queued(old), _queued(new)]
    assert queued[0].describe() == "RUNNING on n[1-2] (12)"
    assert queued[1].describe() == "PENDING: Resources (13)"
    assert job_of(queued, "12") is queued[0]
    assert job_of(queued, "13", 2) is queued[1]
    assert job_of(queued, "13", 7) is queued[1]
    assert job_of(queued, "13", 4) is None
    task = Queued(job="14", array="13", tasks="0", state="RUNNING", reason="", nodes="n1")
    assert job_of([*queued, task], "13", 0) is task


def test_hybrids_sizes_follow_from_the_job() -> None:
    file = ROOT / "launch" / "accelerate" / "hybrid.yaml"
    text = launcher_for(32, 4, True, "auto", file, {}).config
    assert text is not None
    assert "parallelism_config_dp_replicate_size: 4" in text
    assert "parallelism_config_dp_shard_size: 8" in text
