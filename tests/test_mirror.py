"""The W&B mirror: what it tells, and that nothing that happens to it reaches the training."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from genus.mirror import TrackingConfig, follow, page_of, start_mirror
from genus.tracking import Journal
from ranks import environment

OFFLINE = TrackingConfig(wandb="offline", project="genus-tests")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment(HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def run_folder(tmp_path: Path) -> Path:
    """A run folder as a run leaves it before its first step."""
    folder = tmp_path / "runs" / "demo"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"optim": {"lr": 0.5}}))
    (folder / "environment.json").write_text(
        json.dumps({"git_commit": "abc", "recipe": "/recipes/diffusion.py"})
    )
    (folder / "code.diff").write_text("+ a line\n")
    Image.new("RGB", (4, 4), "red").save(folder / "samples" / "64.png")
    return folder


def records(folder: Path) -> list[list[Record]]:
    """What W&B holds in its offline files, one list a session.

    The files are LevelDB logs after 7 bytes of header: blocks of 32 KiB that hold pieces of
    <crc32, length u16, kind u8>, kind 1 whole, 2 first, 3 middle, 4 last.
    """
    sessions = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, at, found, parts = file.read_bytes(), 7, [], b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:  # no piece begins in the last bytes of a block
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack_from("<HB", content, at + 4)
            parts += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                found.append(Record.FromString(parts))
                parts = b""
        sessions.append(found)
    return sessions


def history(session: list[Record]) -> list[dict[str, Any]]:
    """The rows that were logged."""
    rows = []
    for record in session:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def ended(process: subprocess.Popen[bytes] | None, timeout: float = 60) -> int:
    assert process is not None
    try:
        return process.wait(timeout)
    finally:
        process.kill()


def test_two_sessions_of_one_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    metrics, events = Journal(folder / "metrics/rank-0.jsonl"), Journal(folder / "events.jsonl")
    events.write({"event": "start", "world": 1})
    mirror = start_mirror(folder, OFFLINE)
    for samples in (64, 128):
        metrics.write({"samples": samples, "step": samples // 64, "diffusion/loss": 1 / samples})
    metrics.write({"samples": 192, "diffusion/loss": float("nan"), "grad_norm": 2.0})
    metrics.write({"not_finite_at": 128, "ids": [1, 2]})
    events.write({"event": "samples", "samples": 64, "image": "samples/64.png"})
    events.write({"event": "samples", "samples": 64, "image": "samples/missing.png"})
    events.write({"event": "finish", "why": "finished", "samples": 192})
    events.write({"event": "closed"})
    assert ended(mirror) == 0, (folder / "wandb.log").read_text()
    state = json.loads((folder / "wandb.json").read_text())

    # Killed, say, after 256; resumed at 128: the rows up to 192 are there already.
    events.write({"event": "resume", "world": 1})
    mirror = start_mirror(folder, OFFLINE)
    metrics.write({"resumed_at": 128})
    for samples in (192, 256):
        metrics.write({"samples": samples, "step": samples // 64, "diffusion/loss": 1 / samples})
    events.write({"event": "closed"})
    assert ended(mirror) == 0, (folder / "wandb.log").read_text()
    assert json.loads((folder / "wandb.json").read_text())["id"] == state["id"]

    first, second = records(folder)
    runs = [r.run for s in (first, second) for r in s if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {state["id"]}
    assert {run.project for run in runs} == {"genus-tests"}
    assert {run.display_name for run in runs} == {"demo"}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["genus"] == {"optim": {"lr": 0.5}}
    assert (config["git_commit"], config["recipe"]) == ("abc", "/recipes/diffusion.py")

    told = history(first)
    pictures = [row for row in told if any("samples/samples" in key for key in row)]
    rows = [row for row in told if row not in pictures]
    assert [row["samples"] for row in rows] == [64, 128, 192]
    assert [row.get("diffusion/loss") for row in rows] == [1 / 64, 1 / 128, None]
    assert rows[2]["grad_norm"] == 2.0
    assert len(pictures) == 1
    assert pictures[0]["samples"] == 64
    assert list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert [row["samples"] for row in history(second)] == [256]


def test_a_session_that_an_earlier_mirror_did_not_finish_is_told(tmp_path: Path) -> None:
    """The first mirror is killed; the next one meets that session's 'closed' and goes on."""
    folder = run_folder(tmp_path)
    metrics, events = Journal(folder / "metrics/rank-0.jsonl"), Journal(folder / "events.jsonl")
    events.write({"event": "start"})
    metrics.write({"samples": 64})
    events.write({"event": "closed"})
    events.write({"event": "resume"})
    mirror = start_mirror(folder, OFFLINE)
    wait_for(lambda: (folder / "wandb.json").exists() and '"samples": 64' in _text(folder))
    assert mirror is not None
    assert mirror.poll() is None
    metrics.write({"samples": 128})
    events.write({"event": "closed"})
    assert ended(mirror) == 0
    (session,) = records(folder)
    assert [row["samples"] for row in history(session)] == [64, 128]


def _text(folder: Path) -> str:
    return (folder / "wandb.json").read_text()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return as soon as ``condition`` holds; AssertionError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Shown(HTMLParser):
    """What a browser shows of a page: the text of each <pre>, and which tags there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.inside = False
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "pre":
            self.inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def texts_on(page: str) -> list[str]:
    """The texts on a page that has nothing but them."""
    shown = Shown(page)
    assert shown.tags <= {"pre", "hr"}
    assert all(text.startswith("\n") for text in shown.texts)  # which a browser drops
    return [text[1:] for text in shown.texts]


def test_texts_are_told_at_their_step(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    events = Journal(folder / "events.jsonl")
    (folder / "samples/64.txt").write_text("To be\n\n---\n\n<b>or</b> & not\n")
    (folder / "samples/128.txt").write_text("to be\n")
    for samples in (64, 96, 128):  # there is none of 96: an event whose file was removed
        text = f"samples/{samples}.txt"
        events.write({"event": "samples", "samples": samples, "text": text})
    events.write({"event": "closed"})
    assert ended(start_mirror(folder, OFFLINE)) == 0, (folder / "wandb.log").read_text()
    rows = history(records(folder)[0])
    assert [row["samples"] for row in rows] == [64, 128]
    (media,) = folder.glob("wandb/offline-run-*/files")
    told = []
    for row in rows:
        assert row["samples/samples/_type"] == "html-file"
        told.append(texts_on((media / row["samples/samples/path"]).read_text()))
    assert told == [["To be", "<b>or</b> & not"], ["to be"]]


def test_a_text_may_hold_anything(tmp_path: Path) -> None:
    texts = [
        "</pre><script>alert(1)</script><pre>",
        "<!-- &amp; &lt; &#65; \"quoted\" 'so' ]]> </html>",
        "\n\n  leading and trailing \n\n",
        "äöü 你好 🙂 \u2028 \u202e \x1b[31m",
        "",
        "---",
    ]
    path = tmp_path / "texts.txt"
    path.write_text("\n\n---\n\n".join(texts) + "\n", encoding="utf-8")
    page = page_of(path)
    assert texts_on(page) == texts
    assert page.isascii()
    path.write_bytes(b"cut \xf0\x9f\x99, a NUL \0 and <b>\n")  # tokens of bytes end anywhere
    assert texts_on(page_of(path)) == ["cut \ufffd, a NUL \ufffd and <b>"]


# ---- trouble -------------------------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
from genus.mirror import TrackingConfig, start_mirror
mirror = start_mirror(Path(sys.argv[1]), TrackingConfig(wandb="offline"))
print(mirror.pid, flush=True)
sys.stdin.read()
"""


def broken_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{fake}{os.pathsep}{os.environ['PYTHONPATH']}")


def test_wandb_that_raises_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_wandb(tmp_path, monkeypatch, "raise ImportError('no such luck')")
    folder = run_folder(tmp_path)
    assert ended(start_mirror(folder, OFFLINE)) == 1
    assert "mirror ended: ImportError: no such luck" in (folder / "wandb.log").read_text()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_wandb_that_hangs_holds_nobody_up_and_dies_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "import time, pathlib\npathlib.Path({!r}).touch()\nwhile True: time.sleep(1)"
    broken_wandb(tmp_path, monkeypatch, hangs.format(str(tmp_path / "hanging")))
    folder = run_folder(tmp_path)
    # A short grace for the test; start_mirror itself leaves five minutes to finish an upload.
    code = PARENT.replace("mirror = ", "import genus.mirror as m; m.GRACE_SECONDS = 0.2\nmirror = ")
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())  # start_mirror came back though wandb hangs
    wait_for((tmp_path / "hanging").exists)
    assert alive(pid)
    parent.kill()
    wait_for(lambda: not alive(pid))
    parent.communicate()


def test_the_mirror_ends_with_a_run_that_was_killed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    Journal(folder / "metrics/rank-0.jsonl").write({"samples": 64})
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(lambda: bool(list(folder.glob("wandb/offline-run-*/*.wandb"))))
    parent.kill()  # not waited for: a zombie must count as gone
    wait_for(lambda: not alive(pid))
    parent.communicate()
    assert [row["samples"] for row in history(records(folder)[0])] == [64]


def test_off_and_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start_mirror(tmp_path, TrackingConfig(wandb="off")) is None
    assert list(tmp_path.iterdir()) == []
    assert start_mirror(tmp_path / "missing", OFFLINE) is None
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert start_mirror(tmp_path, OFFLINE) is None
    assert capsys.readouterr().err.count("W&B mirror not started") == 2


def test_auto_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    start_mirror(tmp_path, TrackingConfig())
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    start_mirror(tmp_path, TrackingConfig())
    start_mirror(tmp_path, OFFLINE)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine example.org login a password b\n")
    start_mirror(tmp_path, TrackingConfig())
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    start_mirror(tmp_path, TrackingConfig())
    modes = [command[command.index("--mode") + 1] for command in commands]
    assert modes == ["offline", "online", "offline", "offline", "online"]


def test_following_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert follow(path, 0) == ([], 0)
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    rows, offset = follow(path, 0)
    assert (rows, offset) == ([{"a": 1}, {"a": 2}], 18)
    assert follow(path, offset) == ([], 18)  # half a line is left for later
    with path.open("ab") as file:
        file.write(b': 3}\ntorn\n{"a": 4}\n')
    assert follow(path, offset) == ([{"a": 3}, {"a": 4}], len(path.read_bytes()))
