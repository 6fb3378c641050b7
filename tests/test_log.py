"""What TensorBoard is given: every row once, at counted time, arguments as hparams and as text."""
import json
import shutil

import pytest
from conftest import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.log import read_rows, rebuild_tensorboard
from common.report import main as report_main


def events(folder):
    found = EventAccumulator(str(folder / "tb"))
    found.Reload()
    return found


@pytest.fixture
def folder(tmp_path):
    return run_script("baselines/scratch", "--epochs", 2, "--results", tmp_path)


def check(folder):
    rows, board = read_rows(folder), events(folder)
    scalars = board.Scalars("test/accuracy")
    assert [e.step for e in scalars] == [row["steps"] for row in rows] == [0, 10, 20]
    assert [e.value for e in scalars] == pytest.approx([row["test/accuracy"] for row in rows])
    times = [e.wall_time for e in scalars]                    # TensorBoard's relative axis starts at the first of them
    assert [t - times[0] for t in times] == pytest.approx([row["seconds"] - rows[0]["seconds"] for row in rows], abs=1e-3)
    tags = board.Tags()
    assert {"train/loss", "train/correct", "test/loss", "cost/flops", "time/eval"} <= set(tags["scalars"])
    assert any(tag.startswith("arguments") for tag in tags["tensors"])
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(board.summary_metadata)


def test_events_are_rows_at_counted_time(folder):
    check(folder)


def test_rebuilding_gives_the_same(folder, capsys):
    shutil.rmtree(folder / "tb")
    assert report_main(["--tensorboard", str(folder)]) == 0
    check(folder)
    rebuild_tensorboard(folder)                               # twice: no row stands there twice
    check(folder)


def test_the_time_axis_ends_at_what_is_counted(folder):
    rows = read_rows(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seconds"]["untimed"]["eval"] > 0 and summary["seconds"]["untimed"]["data"] > 0
    assert rows[-1]["seconds"] == pytest.approx(summary["seconds"]["counted"], abs=0.05)
