"""What becomes of a run when its job is cut short: each ends equal, to the bit, to one that nothing
interrupted, or stops with a clear word."""

from __future__ import annotations

import signal

from cluster import ROOT, Cluster
from jobs import LONG, SHORT, Job, submit

from genus.tracking import read_metrics


def _same_as(job: Job, other: Job, samples: int = 0) -> None:
    assert job.digest() == other.digest(samples), job.log()
    for rank in (0, 1):
        rows = [row["samples"] for row in read_metrics(job.folder, rank)]
        assert rows == sorted(set(rows))


def _set_end(job: Job, when: str) -> None:
    """Let SLURM end the job at ``when``; it looks at limits every 30 s only."""
    job.cluster.command("scontrol", "update", f"jobid={job.number}", f"EndTime={when}", root=True)


def _give_time(job: Job) -> None:
    """Give the next start of a job that was ended time enough."""
    job.cluster.wait(lambda: job.restarts == 1, "restart")
    job.cluster.command("scontrol", "update", f"jobid={job.number}", "TimeLimit=20", root=True)


def test_a_time_limit_saves_and_goes_on(cluster: Cluster, by_two: Job) -> None:
    words = (f"train.samples={LONG}",)
    job = submit(cluster, "limited", "--nodes=2", "--time=20", "--grace=60", words=words)
    worker = job.stop_worker()
    _set_end(job, "now+61")
    job.let_go_on_signalled(worker)
    _give_time(job)
    job.wait_for("COMPLETED", limit=400)
    assert job.restarts == 1
    assert "saved ahead of the end" in job.log()
    assert len(job.events("resumed")) == 1
    finishes = [event["why"] for event in job.events("finish")]
    assert finishes == ["stopped by SIGTERM", "finished"]
    _same_as(job, by_two)


def test_a_job_that_did_not_save_by_its_limit_goes_on(cluster: Cluster, sweep: list[Job]) -> None:
    """The rank hangs when the signal comes; SLURM wakes it when it ends the job."""
    job = submit(cluster, "hung", "--time=20")
    job.stop_worker()
    _set_end(job, "now")
    _give_time(job)
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "at its time limit without a save; queued again" in job.log()
    _same_as(job, sweep[0])


def test_preemption_with_grace_saves_first(cluster: Cluster, sweep: list[Job]) -> None:
    job = submit(cluster, "graceful", "--partition=graceful", "--time=20")
    worker = job.stop_worker()
    _preempt(cluster)
    job.let_go_on_signalled(worker)
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "saved ahead of the end" in job.log()
    assert [event["why"] for event in job.events("finish")] == ["stopped by SIGTERM", "finished"]
    _same_as(job, sweep[0])


def test_preemption_without_grace_goes_on_all_the_same(cluster: Cluster, sweep: list[Job]) -> None:
    job = submit(cluster, "abrupt", "--partition=abrupt", "--time=20")
    job.stop_worker()
    _preempt(cluster)
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert len(job.events("resumed")) == 1
    _same_as(job, sweep[0])


def _preempt(cluster: Cluster) -> None:
    words = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    done = cluster.command("sbatch", *words, "--wrap=true")
    assert done.returncode == 0, done.stdout


def test_scancel_ends_a_job_for_good(cluster: Cluster) -> None:
    job = submit(cluster, "cancelled", "--time=20")
    worker = job.stop_worker()
    cluster.command("scancel", job.number)
    job.let_go_on_signalled(worker)
    job.wait_for("CANCELLED")
    cluster.wait(lambda: "ended by SLURM" in job.log(), "last word of the job")
    assert job.restarts == 0
    assert (job.folder / "requeue").exists()  # it saved all the same: another submit goes on
    assert "queued again" not in job.log()


def test_a_killed_worker_is_started_again(cluster: Cluster, by_two: Job) -> None:
    words = (f"train.samples={SHORT}",)
    job = submit(cluster, "killed", "--processes-per-node=2", "--time=20", words=words)
    job.wait_until_saved()
    launcher, *workers = sorted(cluster.pids(job.node, "diffusion.py --config"))
    assert len(workers) == 2, (launcher, workers)
    cluster.kill(workers[-1])
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "without a save" in job.log()
    _same_as(job, by_two, SHORT)


def test_a_power_cut_moves_the_job(cluster: Cluster, by_two: Job) -> None:
    words = (f"train.samples={SHORT}",)
    job = submit(cluster, "dark", "--nodes=2", "--time=20", words=words)
    job.stop_worker()
    nodes = [node for node in cluster.nodes if cluster.pids(node, "diffusion.py")]
    dark = next(node for node in nodes if node != job.node)
    cluster.cut_power(dark)
    try:
        job.wait_for("COMPLETED", limit=400)
        assert job.restarts >= 1
        _same_as(job, by_two, SHORT)
    finally:
        cluster.boot(dark)
        cluster.wait_for_nodes()


def test_a_stale_writer_harms_nothing(cluster: Cluster, sweep: list[Job]) -> None:
    """A node is cut off and hangs; its job is started elsewhere; the node comes to life again."""
    job = submit(cluster, "stale", "--time=20")
    writer, lost, recipe = job.stop_worker(), job.node, "diffusion.py --config"
    cluster.cut_cable(lost)
    try:
        cluster.wait(lambda: job.events("resumed"), "start on another node", limit=120)
        assert job.node != lost
        cluster.kill(writer, signal.SIGCONT)
        cluster.wait(lambda: not cluster.pids(lost, recipe), "end of the stale writer", limit=60)
        log = (job.folder / "slurm/1/logs" / f"{job.number}.0" / "node-0.log").read_text()
        assert f"now belongs to SLURM job {job.number}" in log
        job.wait_for("COMPLETED")
        cluster.wait(lambda: "not started again" in job.log(), "the stale script's last word")
        assert (job.folder / "done").read_text().split()[1].startswith(f"{job.number}.1-")
        assert len(job.events("start")) == len(job.events("resume")) == 1
        _same_as(job, sweep[0])
    finally:
        cluster.plug(lost)
        cluster.wait_for_nodes()


DIES = """
import os
from genus import config
import diffusion
from diffusion import Config, PRESETS

def main():
    config.parse(Config, PRESETS, default="tiny")
    os._exit(7)

if __name__ == "__main__":
    main()
"""


def test_a_job_that_dies_at_once_is_given_up(cluster: Cluster) -> None:
    folder = cluster.home / "own"
    folder.mkdir()
    recipe = folder / "dies.py"
    recipe.write_text(DIES)
    (folder / "diffusion.py").write_text((ROOT / "recipes" / "diffusion.py").read_text())
    job = submit(cluster, "dies", "--restarts=1", "--time=20", recipe=recipe)
    job.wait_for("FAILED")
    assert job.restarts == 2  # the last one finds that it is one too many
    assert "ended with 7, without a save" in job.log()
    assert "no newer checkpoint than '' in 2 starts: given up" in job.log()


def test_a_failing_launch_check_ends_the_job_with_one_message(cluster: Cluster) -> None:
    """The code in the run folder is changed behind the job's back, while it waits."""
    job = submit(cluster, "changed", "--hold", "--nodes=2", "--time=20")
    code = job.folder / "slurm" / "1" / "code" / "recipes" / "diffusion.py"
    code.write_text(code.read_text() + "# later\n")
    cluster.command("scontrol", "release", job.number)
    job.wait_for("FAILED")
    assert job.restarts == 0
    last = (job.folder / "slurm" / f"job-{job.number}.out").read_text()
    assert "not started again" in last
    assert "code is not what was submitted" in last
    assert not (job.folder / "config.json").exists()  # nothing was trained
