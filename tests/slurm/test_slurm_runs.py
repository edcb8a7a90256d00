"""Jobs that end as they should, and requests that are refused before they are queued."""

from __future__ import annotations

import json

from cluster import ROOT, Cluster
from jobs import RECIPE, TINY, Job, ask, submit


def test_two_nodes_train_one_run(by_two: Job) -> None:
    assert (by_two.folder / "done").exists()
    assert by_two.events("start")[0]["world"] == 2
    assert by_two.restarts == 0
    logs = by_two.folder / "slurm" / "1" / "logs" / f"{by_two.number}.0"
    assert len(list(logs.glob("node-*/*/attempt_0/*/stdout.log"))) == 2  # one a rank
    assert sorted((logs / "checks.log").read_text().split()) == ["0:", "1:", "n1:", "n2:",
                                                                "sound", "sound"]  # fmt: skip


def test_a_job_has_the_code_of_its_submission(by_two: Job) -> None:
    environment = json.loads((by_two.folder / "environment.json").read_text())
    code = by_two.folder / "slurm" / "1" / "code"
    assert environment["recipe"] == str(code / "recipes" / "diffusion.py")
    about = json.loads((code.parent / "snapshot.json").read_text())
    assert environment["git_commit"] == about["git_commit"] is not None
    assert (code / "platform" / "genus" / "loop.py").exists()
    assert by_two.folder.stat().st_uid != 0  # an ordinary user's


def test_deepspeed_on_two_nodes(cluster: Cluster) -> None:
    config = ROOT / "launch" / "accelerate" / "zero2.yaml"
    flags = ("--nodes=2", "--time=10", f"--launch-config={config}")
    job = submit(cluster, "zero", *flags, words=("train.samples=320",))
    job.wait_for("COMPLETED")
    assert "2 processes, DeepSpeed ZeRO-2" in job.log()
    used = (job.folder / "slurm" / "1" / "accelerate.yaml").read_text()
    assert f"{job.folder}/slurm/1/code/launch/deepspeed/zero2.json" in used


def test_a_sweep_is_an_array_with_a_run_folder_each(sweep: list[Job]) -> None:
    rates = []
    for job in sweep:
        assert (job.folder / "done").exists()
        rates.append(json.loads((job.folder / "config.json").read_text())["optim"]["lr"])
        assert "the run is finished" in job.log()
    assert rates == [1e-3, 3e-4]
    assert sweep[0].digest() != sweep[1].digest()


def test_runs_tells_progress_and_queue(cluster: Cluster, by_two: Job, sweep: list[Job]) -> None:
    lines = cluster.command("genus", "runs").stdout.splitlines()
    table = {line.split()[0]: line for line in lines}
    assert "finished" in table["by-two"]
    assert "6,400/6,400" in table["by-two"]
    assert f"COMPLETED on n[1-2] ({by_two.number})" in table["by-two"]
    assert "COMPLETED" in table["swept-lr-3e-4"]


def test_asking_for_too_much_is_refused_at_once(cluster: Cluster) -> None:
    before = cluster.command("squeue", "-h").stdout
    code, told = ask(cluster, "too-many", "--nodes=8", "--time=10")
    assert code == 2
    assert "SLURM would not start this job" in told
    assert "4 nodes, 8 CPUs, gpu:2 each" in told  # what there is
    code, told = ask(cluster, "too-many", "--gpus-per-node=4", "--time=10")
    assert code == 2
    assert "SLURM would not start this job" in told
    assert cluster.command("squeue", "-h").stdout == before
    assert not (cluster.home / "runs" / "too-many").exists()


def test_a_wrong_key_is_refused_at_once(cluster: Cluster) -> None:
    code, told = ask(cluster, "wrong", words=("optim.lrr=1",))
    assert code == 2
    assert "did you mean 'optim.lr'?" in told
    assert not (cluster.home / "runs" / "wrong").exists()


def test_the_same_run_is_never_twice_at_work(cluster: Cluster) -> None:
    first = submit(cluster, "single", "--time=10", words=("train.samples=1000000",))
    first.wait_until_saved()
    second = submit(cluster, "single", "--time=10")
    assert cluster.field(second.number, "Reason") == "Dependency"
    # nor outside of the queue: on the login host, which sees the folder
    done = cluster.command("python", str(RECIPE), *TINY, "run.name=single")
    assert done.returncode == 2
    assert f"is in use by SLURM job {first.number}" in done.stdout
    cluster.command("scancel", second.number, first.number)
    first.wait_for("CANCELLED")
