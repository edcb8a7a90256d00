"""``genus plan``: prints a plan and leaves it where the run will find it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from genus.plan.compare import FILE, comparison
from genus.plan.estimate import Plan, Where
from genus.plan.estimate import plan as make_plan
from genus.plan.job import Described, Job, read_job
from genus.plan.machines import gpu_named
from genus.plan.report import advice, lines
from genus.plan.search import Search, with_train
from genus.provenance import write_atomically
from genus.run import folder_of


def plan(recipe: Path, words: list[str], arguments: argparse.Namespace) -> None:
    """Print the plan of a command line; ConfigError where the run would be refused."""
    if arguments.preset:
        words = ["--preset", arguments.preset, *words]
    processes = arguments.processes
    nodes = -(-processes // arguments.gpus_per_node)
    said = Described(arguments.image, arguments.classes, arguments.vocabulary, arguments.dims)
    job = read_job(recipe, words, processes=processes, nodes=nodes, described=said)
    gpu = gpu_named(arguments.gpu) if arguments.gpu not in ("", "cpu") else None
    where = Where(gpu, nodes, arguments.disk or (1.0 if gpu else 0.0))
    search = Search(where)
    if arguments.search:
        rows = search.largest_micro(job)
        print(f"largest micro-batch that fits: {rows or 'none'}")
        if rows:
            job = with_train(job, micro=rows)
    made = make_plan(job, where)
    if not arguments.no_store:
        _store(job, made)
    if arguments.json:
        print(json.dumps(made.to_json(), indent=1))
        return
    line = search.line(job) if job.share >= 2 * job.together else None
    for text in lines(made, line, arguments.price):
        print(text)
    if not made.fits:
        for text in advice(search.changes(job)):
            print(text)


def compare(folder: Path) -> None:
    """Print a run's plan beside its measurements."""
    for text in comparison(folder):
        print(text)


def _store(job: Job, made: Plan) -> None:
    """In the run's folder, which is no run yet for that: a run begins with its config.json."""
    folder = folder_of(job.config.run, str(job.recipe), job.preset)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, json.dumps(made.to_json(), indent=1) + "\n")
