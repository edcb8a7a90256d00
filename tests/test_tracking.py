"""Journals: whole lines, torn lines, and the rows that a resume superseded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genus.tracking import Journal, read_events, read_lines, read_metrics


def without_time(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "rank-0.jsonl"
    journal = Journal(path)
    for samples in (64, 128):
        journal.write({"samples": samples, "loss": 0.1 + 0.2})
    assert without_time(read_lines(path)) == [  # before it is closed
        {"samples": 64, "loss": 0.1 + 0.2},
        {"samples": 128, "loss": 0.1 + 0.2},
    ]
    journal.close()
    again = Journal(path)
    again.write({"samples": 192})
    again.close()
    assert [row["samples"] for row in read_metrics(tmp_path)] == [64, 128, 192]
    assert all(isinstance(row["time"], float) for row in read_lines(path))


def test_any_value_can_be_told_and_the_text_is_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    nested = {"list": [1.0, math.nan], "map": {"x": -math.inf}}
    journal.write({"event": "odd", "inf": math.inf, "nested": nested, "text": "ä\u2028\n"})
    journal.write(
        {"event": "types", "a": np.float32(0.5), "b": torch.tensor(3), "c": Path("x"), "d": (1, 2)}
        | {"e": torch.tensor(math.nan), "f": np.arange(2)}
    )
    journal.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for line in (tmp_path / "events.jsonl").read_text().split("\n")[:-1]:
        json.loads(line, parse_constant=refuse)
    odd, types = without_time(read_events(tmp_path))
    assert odd["inf"] == "inf"
    assert odd["nested"] == {"list": [1.0, "nan"], "map": {"x": "-inf"}}
    assert odd["text"] == "ä\u2028\n"
    assert types == {
        "event": "types", "a": 0.5, "b": 3, "c": "x", "d": [1, 2], "e": "nan", "f": "[0 1]"
    }  # fmt: skip


WHOLE = b'{"samples": 64, "time": 1}\n{"samples": 128, "time": 2}\n'


@pytest.mark.parametrize(
    "torn",
    [b'{"samples": 192, "ti', b"{", b'{"samples": 192', b"\x00\x00\x00", b'{"a": "\xc3', b"7\n"],
)
def test_a_torn_line_costs_itself_only(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics" / "rank-0.jsonl"
    path.parent.mkdir()
    path.write_bytes(WHOLE + torn)
    assert [row["samples"] for row in read_metrics(tmp_path)] == [64, 128]
    journal = Journal(path)  # the resumed run goes on in the same file
    journal.write({"samples": 256})
    journal.close()
    assert [row["samples"] for row in read_metrics(tmp_path)] == [64, 128, 256]
    assert path.read_bytes().startswith(WHOLE + torn)  # append only


def test_a_file_cut_at_any_byte_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "rank-0.jsonl"
    path.parent.mkdir()
    for length in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:length])
        rows = read_metrics(tmp_path)
        # a line is whole once its last brace is there, with or without its newline
        assert len(rows) == WHOLE[:length].count(b"}")


def test_nothing_there(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == read_events(tmp_path) == []


def test_a_resume_supersedes_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics" / "rank-0.jsonl")

    def session(resumed_at: int | None, *samples: int, mark: str) -> None:
        if resumed_at is not None:
            journal.write({"resumed_at": resumed_at})
        for count in samples:
            journal.write({"samples": count, "mark": mark})

    session(None, 64, 128, 192, 256, mark="a")
    journal.write({"not_finite_at": 256, "ids": [1, 2]})  # tells of a step, is no report
    session(128, 192, 256, 320, mark="b")
    session(256, 320, mark="c")
    session(256, mark="d")  # killed before its first report
    session(256, 320, 384, mark="e")
    found = [(row["samples"], row["mark"]) for row in read_metrics(tmp_path)]
    assert found == [(64, "a"), (128, "a"), (192, "b"), (256, "b"), (320, "e"), (384, "e")]
    session(0, 64, mark="f")  # no checkpoint at all: from the beginning
    assert [(row["samples"], row["mark"]) for row in read_metrics(tmp_path)] == [(64, "f")]


def test_ranks_have_their_own_rows(tmp_path: Path) -> None:
    for rank in (0, 1):
        Journal(tmp_path / "metrics" / f"rank-{rank}.jsonl").write({"samples": 64, "rank": rank})
    assert [row["rank"] for row in read_metrics(tmp_path, rank=1)] == [1]


def test_a_full_disk_loses_rows_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "metrics" / "rank-0.jsonl")
    journal.write({"samples": 64})
    with Path("/dev/full").open("ab", buffering=0) as full:
        good, journal._file = journal._file, full
        journal.write({"samples": 128})
        journal.write({"samples": 192})
        journal._file = good
    assert capsys.readouterr().err.count("No space left on device") == 1  # said once
    good.write(b'{"samples": 192')  # as much of the failed line as the disk took
    journal.write({"samples": 256})
    journal.write({"samples": 320})
    assert [row["samples"] for row in read_metrics(tmp_path)] == [64, 256, 320]
