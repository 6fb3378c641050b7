"""The report on runs written by hand, against numbers worked out by hand in the comments."""
import json
import math
import re
import shutil
import struct
from pathlib import Path

import pytest
from matplotlib.text import Text

from common.files import Refused
from common.log import Bar, TensorBoard
from common.report import main, read_study, recommend, scores, words, write_readme, write_report
from common.report.aggregate import aggregate
from common.report.figures import drawn as methods_drawn
from common.report.origin import provenance
from common.report.overview import answer, write_overview

# two-sided 95 % quantiles of Student's t from the usual table
SECOND = {"miou": "pixel_accuracy", "map": "map50", "bleu": "nist"}
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 6: 2.447}


def add(study: Path, method: str, budget: float, seed: int, accuracy: float | None, *, tag="", flops=100.0,
        seconds=50.0, preparation=(0.0, 0.0), reused=(), start=0.01, bytes_kept=0, commit="a" * 40, dirty=False,
        failed=None, score="accuracy", picture=None):
    """Plans a run; writes it too, unless accuracy is None. flops and seconds are training's, at budget 1.

    Runs with another score than accuracy name it, as old runs do not; accuracy is its value.
    """
    path = study / "plan.json"
    plan = json.loads(path.read_text()) if path.exists() else {
        "study": "tiny", "task": "cifar100", "model": "resnet8", "scenario": "same", "past_epochs": 8,
        "recommend": True, "past": [], "runs": []}
    label = f"{method}-{tag}" if tag else method
    run = {"method": method, "tag": tag, "budget": budget, "seed": seed,
           "folder": f"{label}/e{8 * budget:g}/seed{seed}",
           "command": f"python methods/{method}.py --epochs {8 * budget:g} --seed {seed}"}
    if method == "past":
        run = {"seed": seed, "folder": f"past/seed{seed}", "command": f"python baselines/scratch.py --seed {seed}"}
    plan["past" if method == "past" else "runs"].append(run)
    study.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan))
    folder = study / run["folder"]
    if failed:
        folder.mkdir(parents=True)
        (folder / "failed.json").write_text(json.dumps({"exit_code": 1, "message": failed}))
    if accuracy is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps, (prep_flops, prep_seconds) = int(400 * budget), preparation
    (folder / "config.json").write_text(json.dumps({
        "method": method, "args": {"batch_size": 128}, "commit": commit, "dirty": dirty, "versions": {"torch": "2.9"},
        "device": {"type": "cpu", "name": "Abacus", "threads": 1}, "past": [],
        "data": {"fingerprint": "f00"} | ({} if score == "accuracy" else {"score": score})}))
    if picture is not None:
        (folder / "pictures.png").write_bytes(picture)
    rows = [{"epoch": 0, "seconds": prep_seconds, "flops": prep_flops, f"test/{score}": start},
            {"epoch": 1, "seconds": prep_seconds + seconds * budget, "flops": prep_flops + flops * budget,
             f"test/{score}": accuracy}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({
        "method": method, "tag": tag, "epochs": 8 * budget, "seed": seed, "steps": steps, "examples": 128 * steps,
        "test": {score: accuracy} | ({"loss": math.nan} if score == "accuracy" else {SECOND[score]: accuracy / 2, "loss": 0.8}),
        "train": {"correct": 0.45, "loss": 0.25 + 0.1 * (seed % 2)},
        "seconds": {"counted": prep_seconds + seconds * budget, "preparation": prep_seconds},
        "flops": {"training": flops * budget, "preparation": prep_flops}, "reused": list(reused),
        "past_bytes": bytes_kept, "parameters": 78042}))


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Figures take most of a second, so only tests that look at them draw."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("common.report.draw", lambda report, curves, folder, more: [])


@pytest.fixture
def drawn():
    """Asks for real figures."""


def fill(study: Path, method: str, curve: dict[float, list[float]], **options):
    for budget, values in curve.items():
        for seed, accuracy in enumerate(values):
            add(study, method, budget, seed, accuracy, **options)


def change_plan(study: Path, **values):
    path = study / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SCRATCH = {0.25: [0.29, 0.31], 0.5: [0.39, 0.41], 1: [0.49, 0.51], 2: [0.59, 0.61]}


@pytest.fixture
def study(tmp_path):
    """Scratch at .30 .40 .50 .60 over 25, 50, 100, 200 FLOPs, two seeds .01 to both sides; two past runs."""
    folder = tmp_path / "tiny"
    for seed, train in ((100, 0.45), (101, 0.45)):
        add(folder, "past", 1, seed, train)
    fill(folder, "scratch", SCRATCH)
    return folder


def row(report, method, budget):
    return next(r for r in report["rows"] if (r["method"], r["budget"]) == (method, budget))


def score(report, method):
    return next(s for s in report["scores"] if s["method"] == method)


def run(study):
    write_report(study)
    return json.loads((study / "report.json").read_text())


def test_monotone_curve_is_flat_where_it_falls_and_remembers_the_point():
    assert scores.monotone([(4, 0.25), (2, 0.3), (8, 0.4)]) == [(2, 0.3, 1), (4, 0.3, 1), (8, 0.4, 2)]


def test_cost_is_read_off_a_monotone_cubic_in_log_cost():
    curve = [(100, 0.5), (25, 0.3), (50, 0.4)]
    assert scores.cost_at(curve, 0.35) == ("reached", pytest.approx(25 * math.sqrt(2)))  # half of the way from 25 to 50
    assert scores.cost_at(curve, 0.425) == ("reached", pytest.approx(50 * 2**0.25))      # a quarter from 50 to 100
    assert scores.cost_at(curve, 0.4) == ("reached", 50)
    assert scores.cost_at(curve, 0.3) == ("reached", 25)
    # flat from 2 to 4, then .3 to .4 from 4 to 8: slopes 0 and .15 per doubling, .3 + .15 t² - .05 t³ = .35 at t = .6527
    assert scores.cost_at([(2, 0.3), (4, 0.25), (8, 0.4)], 0.35) == ("reached", pytest.approx(4 * 2**0.6527, rel=1e-4))
    # concave: slopes per doubling 2 (.2) (.1) / (.2 + .1) at 50 and (3 (.1) - .2) / 2 at 100, so above the line at its middle
    curve, middle = [(25, 0.2), (50, 0.4), (100, 0.5)], 0.45 + (0.4 / 3 - 0.05) / 8
    assert scores.between(curve)(50 * math.sqrt(2)) == pytest.approx(middle)
    assert scores.cost_at(curve, middle) == ("reached", pytest.approx(50 * math.sqrt(2)))
    points = [(25, {0: 0.2, 1: 0.2}), (50, {0: 0.38, 1: 0.42}), (100, {0: 0.5, 1: 0.5})]    # half of the .02 is left there
    assert scores.equal_cost(50 * math.sqrt(2), points) == {0: pytest.approx(middle - 0.01), 1: pytest.approx(middle + 0.01)}


def test_cost_is_never_extrapolated():
    curve = [(25, 0.3), (50, 0.4)]
    assert scores.cost_at(curve, 0.41) == ("not reached", None)
    assert scores.cost_at(curve, 0.29) == ("at most", 25)
    assert scores.cost_at(curve, 0.35, start=0.35) == ("starts there", None)
    assert scores.cost_at(curve, 0.35, start=0.34).status == "reached"
    assert scores.cost_at([], 0.3).status == scores.cost_at(curve, None).status == "unknown"
    points = [(25, {0: 0.3}), (50, {0: 0.4})]
    assert scores.equal_cost(24.9, points) is None and scores.equal_cost(50.1, points) is None
    assert scores.equal_cost(25, points) == {0: 0.3} and scores.equal_cost(50, points) == {0: 0.4}


def test_scratch_at_equal_cost_is_read_by_seed_with_the_weights_of_the_mean_curve():
    # 50 FLOPs lie half of the way (in logs) from 25 to 100: each seed's mean of its two runs
    points = [(25, {0: 0.29, 1: 0.31}), (100, {0: 0.51, 1: 0.49})]
    assert scores.equal_cost(50, points) == {0: pytest.approx(0.40), 1: pytest.approx(0.40)}
    # the mean falls from .35 to .30, so the first point speaks for the second, also where a seed alone would not
    assert scores.equal_cost(100, [(25, {0: 0.3, 1: 0.4}), (100, {0: 0.35, 1: 0.25})]) == {0: 0.3, 1: 0.4}


def test_pooled_interval_by_hand():
    # squares around the means: (.01² + .01²) + (.02² + 0 + .02²) = .001 over (1 + 2) degrees: sd = .018257
    groups = [{0: 0.1, 1: 0.12}, {0: 0.2, 1: 0.22, 2: 0.24}]
    sd, freedom = scores.pooled_sd(groups)
    assert freedom == 3 and sd == pytest.approx(math.sqrt(0.001 / 3))
    assert scores.half_width(sd, freedom, 3) == pytest.approx(T[3] * math.sqrt(0.001 / 3 / 3), rel=1e-3)
    # a single seed beside them borrows their sd; single seeds alone leave it unknown, not 0
    assert scores.pooled_sd([*groups, {0: 0.9}]) == (sd, 3)
    assert scores.pooled_sd([{0: 0.1}, {0: 0.2}]) == (None, 0)
    assert scores.half_width(None, 0, 1) is None


def test_degrees_of_freedom_of_rows_that_share_runs_by_hand():
    one = {0: -1, 1: 0, 2: 1}
    assert scores.shared_freedom([one]) == 2
    assert scores.shared_freedom([one, {0: -2, 1: 0, 2: 2}]) == pytest.approx(2)                     # the same twice: of one
    assert scores.shared_freedom([one, {0: 1, 1: -2, 2: 1}]) == pytest.approx(2 * 64 / (4 + 36))     # unrelated, 2 and 6
    assert scores.shared_freedom([one, {seed: value / math.sqrt(3) for seed, value in ((0, 1), (1, -2), (2, 1))}]) \
        == pytest.approx(4) == scores.pooled_sd([one, one])[1]                                       # unrelated and alike: all
    assert scores.shared_freedom([one, {0: -1, 1: 1, 2: 0}]) == pytest.approx(2 * 16 / (4 + 4 + 1 + 1))
    assert scores.shared_freedom([one, {5: 0.3}]) == 2                       # a single seed tells nothing
    assert scores.shared_freedom([one, {5: 0.3, 6: 0.4}]) == 1               # no seeds in common: the least
    assert scores.shared_freedom([{0: 1}]) == 0 and scores.shared_freedom([{0: 1, 1: 1}]) == 1


@pytest.mark.parametrize("name", ["gain_over_scratch_2", "over_full", "past_charged"])
def test_rows_over_much_the_same_runs_are_not_independent(study, name):
    """Two seeds: one degree of freedom, however many rows."""
    fill(study, "warm_start", {0.5: [0.54, 0.54], 1: [0.7, 0.7]}, reused=["weights"])
    rows = [row(run(study), "warm_start", budget) for budget in (0.5, 1)]
    groups = [{int(seed): value for seed, value in one[name]["values"].items()} for one in rows]
    assert all(groups) and scores.pooled_sd(groups)[1] == 2
    for one in rows:
        assert one[name]["half"] == pytest.approx(scores.half_width(scores.pooled_sd(groups)[0], 1, 2), rel=1e-6) != 0


def test_speed_ups_take_no_row_as_independent_of_the_others(tmp_path):
    # each row's difference to scratch at budget 1 is off by .0001 in the same direction: one degree of freedom, not three
    fill(tmp_path, "scratch", {0.5: [0.4, 0.4], 1: [0.4999, 0.5001], 2: [0.6, 0.6]})
    fill(tmp_path, "kd", {0.25: [0.45, 0.45], 0.5: [0.55, 0.55], 1: [0.6, 0.6]})
    report = run(tmp_path)
    curve = [(25, 0.45), (50, 0.55), (100, 0.6)]
    by_hand = scores.speed_up(scores.Reading("reached", 100), curve, [12.706 * 0.0001] * 3, 0.5)
    cells = [score(report, "kd")["targets"]["full"]["speed_up"]["flops"], row(report, "kd", 0.5)["cheaper"]]
    assert cells[0]["low"] == pytest.approx(by_hand.low, rel=1e-5) and cells[0]["high"] == pytest.approx(by_hand.high, rel=1e-5)
    over_full = row(report, "kd", 0.5)["over_full"]
    assert over_full["mean"] == pytest.approx(0.05) and over_full["half"] == pytest.approx(12.706 * 0.0001, rel=1e-4)
    assert re.search(r"^\| `kd` \| 1/2 \| .* \| \+5.0 \[\+4.9, \+5.1\] \|$", (tmp_path / "REPORT.md").read_text(), re.M)
    # read where scratch has .55, half-way to budget 2 in log cost, its seeds are off by half of that
    near = scores.cheaper((50, 0.55), 12.706 * 0.0001 / 2, [(50, 0.4), (100, 0.5), (200, 0.6)])
    assert cells[1]["high"] == pytest.approx(near.high, rel=1e-3)


def test_paired_difference_uses_the_seeds_that_both_have():
    assert scores.paired({0: 0.5, 1: 0.6, 7: 0.9}, {1: 0.5, 0: 0.2, 2: 0}) == {0: 0.3, 1: pytest.approx(0.1)}


def test_speed_up_interval_moves_the_curve():
    curve, base = [(50, 0.4), (100, 0.6)], scores.Reading("reached", 100)
    # target .5: half of the way, 70.7. Moved down by .05: .35 to .55, three quarters; up: .45 to .65, one quarter
    found = scores.speed_up(base, curve, [0.05, 0.05], 0.5)
    assert (found.low, found.value, found.high) == tuple(pytest.approx(2**power) for power in (0.25, 0.5, 0.75))
    # half-widths of .1: down .3 to .5 gets there at 100 (1); up starts at .5 with 50 (2). Of .11: neither is closed
    assert scores.speed_up(base, curve, [0.1, 0.1], 0.5)[2:] == (
        pytest.approx(1), "reached", pytest.approx(2), "reached")
    assert scores.speed_up(base, curve, [0.11, 0.11], 0.5)[2:] == (None, "not reached", 2, "at most")
    assert scores.speed_up(base, curve, [0.1, None], 0.5)[2:] == (None, "unknown", None, "unknown")
    assert scores.speed_up(base, curve, [0.3, 0.3], 0.7)[:2] == ("not reached", None)
    assert scores.speed_up(base, curve, [0, 0], 0.3)[:2] == ("at most", 2)
    assert scores.speed_up(scores.Reading("not reached"), curve, [0, 0], 0.5)[:2] == ("unknown", None)


def test_cheaper_at_a_row_s_own_accuracy():
    # scratch .3 .4 .5 over 25, 50, 100; a row with .45 for 50: scratch needs 50 sqrt 2. Moved by .05: 50 and 100
    scratch = [(25, 0.3), (50, 0.4), (100, 0.5)]
    found = scores.cheaper((50, 0.45), 0.05, scratch)
    assert (found.low, found.value, found.high) == (pytest.approx(1), pytest.approx(math.sqrt(2)), pytest.approx(2))
    assert scores.cheaper((50, 0.48), 0.05, scratch)[4:] == (None, "not reached")          # .53: scratch never gets there
    assert scores.cheaper((50, 0.2), None, scratch) == ("at most", 0.5, None, "unknown", None, "unknown")


def test_speed_ups_are_as_uncertain_as_the_difference_to_scratch_where_it_is_as_good(tmp_path):
    # over scratch at its own budget kd has .08 and .12; over budget 1, as good as kd, nothing in either seed
    fill(tmp_path, "scratch", {0.5: [0.4, 0.4], 1: [0.48, 0.52], 2: [0.6, 0.6]})
    fill(tmp_path, "kd", {0.5: [0.48, 0.52]})
    report = run(tmp_path)
    assert row(report, "kd", 0.5)["difference"]["half"] > 0.1
    for cell in (row(report, "kd", 0.5)["cheaper"], score(report, "kd")["targets"]["full"]["speed_up"]["flops"]):
        assert [cell[name] for name in ("low", "value", "high")] == [pytest.approx(2)] * 3
    # to .49, between budgets 1/2 and 1, scratch's seeds differ by nine tenths of .04: kd's by a tenth of that more
    near = scores.equal_cost(50 * 2**0.9, [(50, {0: 0.4, 1: 0.4}), (100, {0: 0.48, 1: 0.52})])
    assert near[1] - near[0] == pytest.approx(0.036)


def test_cost_columns():
    assert scores.cost_columns(100, 20) == {"marginal": 100, "with_preparation": 120, "amortized": {"1": 120, "5": 104}}


def test_full_accuracy_and_rows(study):
    fill(study, "kd", {0.5: [0.44, 0.46], 1: [0.54, 0.56]}, flops=120, preparation=(10, 5), reused=["model"],
         bytes_kept=7)
    report = run(study)
    assert report["full_accuracy"] == pytest.approx(0.5)
    one = row(report, "kd", 0.5)
    # every group has squares of 2 * .01²: pooled over two budgets .0004 / 2 = .01414², half t(2) * .01414 / sqrt 2
    assert (one["low"], one["high"]) == (pytest.approx(0.45 - T[2] * 0.01, abs=1e-5),
                                         pytest.approx(0.45 + T[2] * 0.01, abs=1e-5))
    scratch = row(report, "scratch", 1)                       # over four budgets: t(4)
    assert scratch["high"] - scratch["mean"] == pytest.approx(T[4] * 0.01, abs=1e-5)
    assert (one["seeds"], one["planned"], one["values"], one["steps"]) == (2, 2, {"0": 0.44, "1": 0.46}, 200)
    assert (one["flops"], one["seconds"], one["past_bytes"], one["train_accuracy"]) == (70, 30, 7, 0.45)
    assert one["cost"]["flops"] == {"marginal": 60, "with_preparation": 70, "amortized": {"1": 70, "5": 62}}
    assert one["cost"]["seconds"] == {"marginal": 25, "with_preparation": 30, "amortized": {"1": 30, "5": 26}}
    # both seeds gain .05 at both budgets: paired, the interval is a point, although the means vary
    assert one["difference"]["mean"] == pytest.approx(0.05) and one["difference"]["half"] == pytest.approx(0, abs=1e-9)
    # a step costs 1.2 of scratch's FLOPs; preparation is left out
    assert score(report, "kd")["step_cost"] == {"budget": 1, "flops": pytest.approx(1.2), "seconds": pytest.approx(1)}


def test_difference_at_equal_flops(study):
    # kd at budget 1/2 costs 100 FLOPs, where scratch has .49 and .51: +.03 and +.05; at 1 it costs 200: +.02 and +.02.
    # squares .0002 + 0 over 2 degrees: sd .01, half-width t(2) * .01 / sqrt 2
    fill(study, "kd", {0.5: [0.52, 0.56], 1: [0.61, 0.63]}, flops=200)
    # wild costs 400 FLOPs, cheap 10: outside of scratch's budgets, nothing is said
    fill(study, "wild", {0.25: [0.5, 0.5], 1: [0.5, 0.5]}, flops=400)
    fill(study, "cheap", {0.25: [0.2, 0.2]}, flops=40)
    report = run(study)
    cell = row(report, "kd", 0.5)["equal_flops"]
    assert cell["values"] == {"0": pytest.approx(0.03), "1": pytest.approx(0.05)}
    assert cell["low"] == pytest.approx(0.04 - T[2] * 0.01 / math.sqrt(2), abs=1e-5)
    assert row(report, "wild", 1)["equal_flops"]["mean"] is None
    assert row(report, "wild", 1)["equal_flops"]["reason"] == "beyond scratch's budgets"
    assert row(report, "cheap", 0.25)["equal_flops"]["reason"] == "below scratch's budgets"
    assert row(report, "kd", 0.5)["equal_seconds"]["mean"] == pytest.approx(0.14)  # equal seconds is equal budget here


def test_costs_and_speed_ups(study):
    fill(study, "fast", {0.25: [0.39, 0.41], 0.5: [0.49, 0.51], 1: [0.59, 0.61]}, seconds=100)
    fill(study, "slow", {0.5: [0.38, 0.4], 1: [0.47, 0.49]})
    fill(study, "above", {0.5: [0.54, 0.56]}, start=0.5)                    # by chance: it reuses no weights
    report = run(study)
    assert list(report["targets"]) == ["full", "full-1", "full+1"]          # scratch has .60 at budget 2
    full = score(report, "fast")["targets"]["full"]
    assert full["cost"]["flops"] == {"status": "reached", "cost": pytest.approx(50)}
    assert full["speed_up"]["flops"]["value"] == pytest.approx(2)
    assert full["speed_up"]["seconds"]["value"] == pytest.approx(1)         # its seconds are twice scratch's
    assert full["speed_up"]["steps"]["value"] == pytest.approx(2)
    # .49: scratch is nine tenths of the way from 50 to 100, fast nine tenths from 25 to 50
    near = score(report, "scratch")["targets"]["full-1"]["cost"]["flops"]
    assert near["cost"] == pytest.approx(50 * 2**0.9)
    assert score(report, "fast")["targets"]["full-1"]["cost"]["flops"]["cost"] == pytest.approx(25 * 2**0.9)
    assert score(report, "slow")["targets"]["full"]["cost"]["flops"] == {"status": "not reached", "cost": None}
    assert score(report, "above")["targets"]["full"]["cost"]["flops"] == {"status": "at most", "cost": 50}
    text = (study / "REPORT.md").read_text()
    assert "| `slow` | not reached |" in text and "| `above` | ≥ 2.00 [≥ 2.00] |" in text


def test_scratch_costs_budget_1_to_full_accuracy_by_definition(study, tmp_path):
    odd = tmp_path / "odd"
    fill(odd, "scratch", {0.5: [0.55, 0.57], 1: [0.49, 0.51]})              # a smaller budget happens to be better
    fill(odd, "kd", {0.5: [0.49, 0.51]})
    report = run(odd)
    assert score(report, "scratch")["targets"]["full"]["cost"]["flops"] == {"status": "reached", "cost": 100}
    assert score(report, "kd")["targets"]["full"]["speed_up"]["flops"]["value"] == pytest.approx(2)
    assert "full+1" not in report["targets"]                                # there is no budget 2


def test_a_point_more_only_where_scratch_at_budget_2_gets_there(tmp_path):
    fill(tmp_path, "scratch", {1: [0.49, 0.51], 2: [0.495, 0.515]})
    assert list(run(tmp_path)["targets"]) == ["full", "full-1"]


def test_reloaded_weights_are_scored_by_gains_where_nothing_is_new(study):
    # seed by seed .02 and .04 above warm_start; -.03 and -.03, then +.01 and +.01 against scratch at budget 2
    fill(study, "warm_start", {0.5: [0.54, 0.54]}, reused=["weights"], start=0.5)
    fill(study, "shrink", {0.5: [0.56, 0.58], 1: [0.60, 0.62]}, reused=["weights"], start=0.5)
    report = run(study)
    half, one = row(report, "shrink", 0.5), row(report, "shrink", 1)
    assert half["gain_over_warm_start"]["mean"] == pytest.approx(0.03)
    assert half["gain_over_scratch_2"]["values"] == {"0": pytest.approx(-0.03), "1": pytest.approx(-0.03)}
    assert one["gain_over_scratch_2"]["mean"] == pytest.approx(0.01)
    assert one["gain_over_warm_start"]["reason"] == "no warm_start at this budget"
    assert score(report, "shrink")["targets"] is None
    kinds = {item["kind"]: item for item in report["recommendations"]}
    assert kinds["reload weights"]["rows"] == [{"method": "shrink", "budget": 1}]
    assert kinds["save compute, full"]["method"] is kinds["accuracy at equal FLOPs"]["method"] is None
    change_plan(study, scenario="grow")                                     # new data: they are methods like any other
    report = run(study)
    assert "gain_over_warm_start" not in row(report, "shrink", 0.5)
    assert score(report, "shrink")["targets"]["full"]["cost"]["flops"]["status"] == "starts there"
    assert "starts there" in (study / "REPORT.md").read_text()
    saved = {item["kind"]: item for item in report["recommendations"]}["save compute, full"]
    assert "`shrink` has it before its first step." in saved["text"] and saved["measured"] == saved["candidates"]
    assert "do not get there" not in saved["text"]


def test_a_gain_that_charges_the_past_run_is_over_a_scratch_of_that_cost(study):
    """.54 for 50 FLOPs after a past run of 100; scratch, .1 better with each doubling, has .5 + .1 log2(1.5) for 150."""
    fill(study, "warm_start", {0.5: [0.54, 0.54]}, reused=["weights"], start=0.5)
    fill(study, "dash", {0.5: [0.54, 0.54]}, reused=["weights"], start=0.5, flops=500)
    for path in study.rglob("summary.json"):
        used = [] if path.parts[-4] not in ("warm_start", "dash") else [f"past/seed{100 + int(path.parent.name[-1])}"]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "cifar100", "past": used}))
    report = run(study)
    cell = row(report, "warm_start", 0.5)["past_charged"]
    assert cell["mean"] == pytest.approx(0.54 - 0.5 - 0.1 * math.log2(1.5)) and cell["seeds"] == 2
    assert row(report, "dash", 0.5)["past_charged"]["reason"] == "beyond scratch's budgets"        # 250 and 100
    table = (study / "REPORT.md").read_text().partition("\n## Gains")[2]
    assert re.search(r"^\| `warm_start` \| 1/2 \| 2/2 \| 54.0 ± 0.0 \| – \| −6.0 \[.*\] \| −1.8 \[.*\] \| 50.0 \|", table, re.M)
    change_plan(study, scenario="grow")                                     # nor is it left out where data are new
    cell = row(run(study), "warm_start", 0.5)["past_charged"]
    assert cell["mean"] == pytest.approx(0.54 - 0.5 - 0.1 * math.log2(1.5))
    text = (study / "REPORT.md").read_text()
    table = text.partition("\n## Cost of the past")[2].partition("\n## ")[0]
    assert re.search(r"^\| `warm_start` \| 1/2 \| 1\.50e-10 \| −1.8 \[.*?\] \| 5.00e-11 ", table, re.M), table


def test_a_cost_a_rounding_off_scratchs_curve_is_read_at_its_end(study):
    """Scratch has 25 to 200 FLOPs: 201 and 24.9 are read there, 204 and 24 are not."""
    fill(study, "kd", {0.25: [0.35, 0.35], 2: [0.65, 0.65]}, flops=100.5)
    fill(study, "dkd", {0.25: [0.35, 0.35], 2: [0.65, 0.65]}, flops=102)
    fill(study, "ema", {0.25: [0.35, 0.35]}, flops=99.6)
    fill(study, "lawa", {0.25: [0.35, 0.35]}, flops=96)
    report = run(study)
    assert row(report, "kd", 2)["equal_flops"]["mean"] == pytest.approx(0.65 - 0.6)
    assert row(report, "dkd", 2)["equal_flops"]["reason"] == "beyond scratch's budgets"
    assert row(report, "ema", 0.25)["equal_flops"]["mean"] == pytest.approx(0.35 - 0.3)
    assert row(report, "lawa", 0.25)["equal_flops"]["reason"] == "below scratch's budgets"


def test_missing_and_failed_runs_are_rows_and_never_averaged_away(study):
    add(study, "kd", 0.5, 0, 0.6)
    add(study, "kd", 0.5, 1, None, failed="RuntimeError: loss | is nan")
    add(study, "kd", 1, 0, 0.7)
    add(study, "kd", 1, 1, 0.7)
    report = run(study)
    one = row(report, "kd", 0.5)
    assert (one["seeds"], one["planned"], one["complete"], one["mean"]) == (1, 2, False, 0.6)
    assert report["failed"] == [{"method": "kd", "tag": "", "budget": 0.5, "seed": 1, "folder": "kd/e4/seed1",
                                 "command": "python methods/kd.py --epochs 4 --seed 1", "state": "failed",
                                 "exit_code": 1, "message": "RuntimeError: loss | is nan"}]
    # .60 at budget 1/2 would be "at most 50"; only the complete row counts, so it is "at most 100"
    assert score(report, "kd")["targets"]["full"]["cost"]["flops"] == {"status": "at most", "cost": 100}
    assert report["blocked"] is None
    assert all(item["method"] != "kd" or item.get("budget") != 0.5 for item in report["recommendations"])
    text = (study / "REPORT.md").read_text()
    assert r"| failed with exit code 1: RuntimeError: loss \| is nan | `python methods/kd.py" in text
    assert "| `kd` | 1/2 | 1/2 |" in text
    add(study, "ema", 1, 0, None)
    report = run(study)
    assert [r["command"] for r in report["missing"]] == ["python methods/ema.py --epochs 8 --seed 0"]
    assert row(report, "ema", 1)["mean"] is None and "not started" in (study / "REPORT.md").read_text()
    assert report["recommendations"] == [] and "1 of 15 planned runs are missing" in report["blocked"]


def test_a_retried_run_that_finished_is_not_failed(study):
    add(study, "kd", 1, 0, 0.6, failed="killed")
    assert run(study)["failed"] == []


def test_accuracy_that_is_no_number_is_a_failed_run(study):
    add(study, "kd", 1, 0, math.nan)
    report = run(study)
    assert report["failed"][0]["message"] == "finished, but its test accuracy is not a number"
    assert row(report, "kd", 1)["mean"] is None and "NaN" not in (study / "report.json").read_text()


def test_unequal_seeds(study):
    # scratch has seeds 0 and 1, kd 1, 2 and 3: only seed 1 is paired, at two budgets, so its interval is unknown
    for budget, values in ((0.5, (0.41, 0.43, 0.45)), (1, (0.55, 0.57, 0.59))):
        for seed, accuracy in enumerate(values, start=1):
            add(study, "kd", budget, seed, accuracy)
    cell = row(run(study), "kd", 0.5)["difference"]
    assert cell["values"] == {"1": pytest.approx(0.0)} and cell["seeds"] == 1
    assert cell["low"] is cell["high"] is cell["half"] is None
    assert "+0.0 [unknown]" in (study / "REPORT.md").read_text()
    for seed in (0, 1):
        add(study, "ema", 0.125, seed, 0.2)
        add(study, "ema", 0.5, seed, 0.4 + seed / 10)
    one = row(run(study), "ema", 0.125)["difference"]         # no scratch there, but the other budget's half-width
    assert one["mean"] is None and one["reason"] == "no scratch at this budget" and one["half"] > 0


def test_what_only_pooling_establishes_is_marked(study):
    # over scratch +.02 and +.10 at budget 1/2, +.06 in both seeds at three others: pooled squares .0032 over 4 degrees,
    # half t(4) * .0283 / sqrt 2 = .0555; by its own two seeds t(1) * .0566 / sqrt 2 = .508
    fill(study, "kd", {0.5: [0.41, 0.51], 0.25: [0.35, 0.37], 1: [0.55, 0.57], 2: [0.65, 0.67]})
    report = run(study)
    cell = row(report, "kd", 0.5)["difference"]
    assert cell["half"] == pytest.approx(T[4] * 0.02, abs=1e-4) and cell["own_half"] == pytest.approx(12.706 * 0.04, abs=1e-3)
    assert words.point_interval(cell) == "+6.0 [+0.4, +11.6]†" and "+6.0 [+0.4, +11.6]†" in (study / "REPORT.md").read_text()
    assert words.point_interval(row(report, "kd", 1)["difference"]) == "+6.0 [+0.4, +11.6]"


def test_single_seed_leaves_intervals_unknown_and_recommends_nothing(tmp_path, drawn):
    fill(tmp_path, "scratch", {0.5: [0.4], 1: [0.5]})
    fill(tmp_path, "kd", {0.5: [0.6], 1: [0.7]})
    report = run(tmp_path)
    assert all(r["low"] is r["high"] is None for r in report["rows"])
    assert score(report, "kd")["targets"]["full"]["speed_up"]["flops"]["low"] is None
    assert report["recommendations"] == [] and report["blocked"].startswith("One seed gives no interval")
    text = (tmp_path / "REPORT.md").read_text()
    assert "≥ 2.00 [unknown]" in text and "One seed gives no interval" in text and "± 0.0" not in text


def test_without_scratch(tmp_path, drawn):
    fill(tmp_path, "kd", {0.5: [0.6, 0.61], 1: [0.7, 0.71]})
    report = run(tmp_path)
    assert report["full_accuracy"] is None and report["recommendations"] == []
    assert row(report, "kd", 1)["difference"]["reason"] == "no scratch at this budget"
    assert score(report, "kd")["targets"]["full"]["speed_up"]["flops"]["value"] is None
    assert "full accuracy is unknown" in (tmp_path / "REPORT.md").read_text().lower()


def test_incomplete_scratch_gives_no_full_accuracy(tmp_path):
    fill(tmp_path, "scratch", {0.5: [0.4, 0.42], 1: [0.5]})
    add(tmp_path, "scratch", 1, 1, None, failed="killed")
    report = run(tmp_path)
    assert report["full_accuracy"] is None and "no complete row at budget 1" in report["blocked"]
    # 75 FLOPs lie between the two budgets, but the upper row is incomplete, so no curve goes there
    fill(tmp_path, "kd", {0.5: [0.5, 0.52]}, flops=150)
    assert row(run(tmp_path), "kd", 0.5)["equal_flops"]["reason"] == "beyond scratch's budgets"


def test_nothing_finished_lists_everything(tmp_path, drawn):
    for method in ("past", "scratch", "kd"):
        add(tmp_path, method, 1, 0, None)
    report = run(tmp_path)
    assert [r["method"] for r in report["missing"]] == ["past run", "scratch", "kd"] and report["figures"] == []
    text = (tmp_path / "REPORT.md").read_text()
    assert text.count("| not started |") == 4 and "3 of 3 planned runs are missing" in text  # the past run's table too


def numbers(value, found):
    """Every number in report.json as the report would print it: as it is, in points and with two decimals."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            numbers(item, found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found |= {f"{value:g}", f"{value:.2f}", f"{abs(100 * value):.1f}"}
    return found


def recommend_study(study):
    fill(study, "fast", {0.25: [0.39, 0.415], 0.5: [0.49, 0.51], 1: [0.59, 0.612]}, reused=["model"])
    fill(study, "faster", {0.25: [0.41, 0.435], 0.5: [0.51, 0.53], 1: [0.61, 0.632]}, reused=["model"])
    fill(study, "free", {0.5: [0.43, 0.45], 1: [0.53, 0.551]})
    fill(study, "bad", {0.5: [0.3, 0.32], 1: [0.4, 0.421]}, reused=["examples"])
    fill(study, "noisy", {0.5: [0.3, 0.95], 1: [0.9, 0.3]})
    return run(study)


def test_recommendations_follow_their_rules(study):
    report = recommend_study(study)
    kinds = {item["kind"]: item for item in report["recommendations"]}
    assert kinds["save compute, full"]["method"] == "faster" and kinds["save compute, full"]["low"] > 1
    assert kinds["accuracy at equal FLOPs"]["method"] == "faster"           # noisy's mean at 1/2 is larger
    assert {r["method"] for r in kinds["not worth it"]["rows"]} == {"bad"}
    assert "reload weights" not in kinds                                    # nothing here reloads weights
    text = kinds["save compute, full"]["text"]
    assert report["holds_for"] == "The past runs underfit: nothing is said about runs that memorize."
    assert "Measured at budget 1/4 to 1." in text
    assert "Without any past run: `free`" in text


def test_every_number_of_the_recommendations_is_in_report_json(study):
    report = recommend_study(study)
    section = (study / "REPORT.md").read_text().split("## Recommendations")[1].split("\n## ")[0]
    for item in report["recommendations"]:
        assert item["text"] in section and item["rule"] in section
    known = numbers({key: value for key, value in report.items() if key != "recommendations"}, set())
    spoken = re.findall(r"\d+\.\d+", section)
    assert len(spoken) > 15 and set(spoken) <= known


def test_no_method_meets_a_rule_is_said(study):
    fill(study, "noisy", {0.5: [0.3, 0.5], 1: [0.6, 0.4]})
    text = " ".join(item["text"] for item in run(study)["recommendations"])
    assert "No method meets the rule for full accuracy." in text
    assert "No method meets the rule for accuracy at equal FLOPs. Nearest: `noisy`" in text
    assert "No method is established as not worth it." in text and "below budget 1" not in text
    fill(study, "short", {0.5: [0.3, 0.5]})
    text = " ".join(item["text"] for item in run(study)["recommendations"])
    assert "1 of 2 do not get there, measured up to budget 1/2 alone." in text
    fill(study, "scratch", {0.5: [0.44, 0.46]}, tag="other")                # a control of scratch is no method
    assert {item["candidates"] for item in run(study)["recommendations"] if "candidates" in item} == {2}
    fill(study, "warm_start", {0.5: [0.54, 0.54]}, reused=["weights"])      # .05 and .07 below scratch at budget 2
    text = " ".join(item["text"] for item in run(study)["recommendations"])
    assert "Reloading final weights is not established to pay, at scratch's learning rate: no row" in text
    assert "meets the rule. Nearest: `warm_start` at budget 1/2, −6.0 [" in text
    assert "] points, and +14.0 [" in text and "as many FLOPs as it and its past runs had together. " in text


def test_what_is_established_as_worse_is_not_called_nearest(study):
    fill(study, "worse", {0.5: [0.35, 0.371]})                              # .04 below scratch
    texts = {item["kind"]: item["text"] for item in run(study)["recommendations"]}
    assert texts["accuracy at equal FLOPs"] == "No method meets the rule for accuracy at equal FLOPs."
    assert "`worse` at budget 1/2, −4.0 [" in texts["not worth it"]


def test_what_a_cheaper_scratch_beats_is_not_worth_it(study):
    fill(study, "dear", {1: [0.55, 0.571]}, flops=300)        # scratch has .60 for 200
    fill(study, "cheap", {0.25: [0.2, 0.23]}, flops=99.5)     # a rounding below scratch's smallest budget
    fill(study, "tiny", {0.25: [0.2, 0.23]}, flops=50)        # nothing is known of scratch at half of that
    fill(study, "good", {1: [0.6, 0.64]}, flops=300)
    worse = next(item for item in run(study)["recommendations"] if item["kind"] == "not worth it")
    assert [one["method"] for one in worse["rows"]] == ["cheap", "dear"]
    assert "`dear` at budget 1, to which a cheaper scratch is superior" in worse["text"]


def test_accuracy_at_equal_flops_is_recommended_at_the_budget_that_most_have(study):
    fill(study, "early", {0.25: [0.5, 0.51], 0.5: [0.44, 0.451], 1: [0.52, 0.531]})
    fill(study, "late", {0.5: [0.46, 0.471]})
    fill(study, "other", {0.5: [0.43, 0.441]})
    found = next(item for item in run(study)["recommendations"] if item["kind"] == "accuracy at equal FLOPs")
    assert (found["method"], found["budget"]) == ("late", 0.5) and "Measured at budget 1/2." in found["text"]
    assert "at budget 1/2 |" in write_overview(study.parent).read_text()


def test_demo_recommends_nothing(study):
    recommend_study(study)
    change_plan(study, recommend=False)
    assert run(study)["recommendations"] == []
    assert "smoke test on easy data" in (study / "REPORT.md").read_text()


@pytest.mark.parametrize("train, verb, regime", [(0.949, "underfit (below 95 %)", "underfits"),
                                                 (0.95, "memorize (at least 95 %)", "memorizes")])
def test_regime_and_provenance_stand_under_every_table(tmp_path, train, verb, regime):
    add(tmp_path, "past", 1, 100, 0.4)
    path = tmp_path / "past/seed100/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train": {"correct": train}}))
    fill(tmp_path, "scratch", {1: [0.5, 0.52]})
    fill(tmp_path, "kd", {1: [0.5, 0.52]}, commit="b" * 40, dirty=True)
    assert run(tmp_path)["past"]["regime"] == regime
    text = (tmp_path / "REPORT.md").read_text()
    tables = len(re.findall(r"^\|:--", text, re.M))
    lines = re.findall(r"^<sub>.*</sub>$", text, re.M)
    assert tables == len(lines) + 1 > 5 and all(             # the list of commits and devices is its own
        "this one past run" in line and verb in line for line in lines)
    assert "Abacus (cpu, 1 thread, bf16). torch 2.9. Batch size 128. Commits aaaaaaaaaa and bbbbbbbbbb (dirty" in lines[0]
    assert "Seeds per row: 2" in lines[0]


def test_what_is_reused_is_said_to_be_paid(study):
    """Under `same`, where the past runs could have been one longer training: a teacher of 1e14 FLOPs, a run of 1e14."""
    report = run(study)
    kd = row(report, "scratch", 1) | {"method": "kd", "mean": 0.55, "sequence_flops": 2.1e14,
                                   "past_charged": {"mean": None}}
    rows = [kd, *(row(report, "scratch", budget) | {"flops": 1e14 * budget} for budget in (1, 2))]
    assert recommend.if_charged(report | {"rows": rows}, "kd") == (
        " What is reused counts as paid; charged in full, `kd` at budget 1 costs 210 TFLOP and has 55.0 %, "
        "scratch at budget 2 costs 200 TFLOP and has 60.0 %.")
    kd["past_charged"] = {"mean": -0.05, "low": -0.06, "high": -0.04, "own_half": 0.01, "reason": None}
    assert recommend.if_charged(report | {"rows": rows}, "kd").endswith(
        " has 60.0 %; at as many FLOPs the difference is −5.0 [−6.0, −4.0] points.")
    assert recommend.if_charged(report | {"rows": rows, "scenario": "grow"}, "kd") == ""


@pytest.mark.parametrize("scenario, by", [("same", "gain"), ("generations", "gain"), ("grow", "cost")])
def test_who_reloads_where_nothing_is_new_has_no_speed_up(study, scenario, by):
    fill(study, "warm_start", {0.5: [0.54, 0.54], 1: [0.7, 0.7]}, reused=["weights"])
    change_plan(study, scenario=scenario)
    assert {one["method"]: one["scored_by"] for one in run(study)["scores"]} == {"scratch": "cost", "warm_start": by}


def test_many_commits_are_counted_and_listed_once(study):
    for i in range(4):
        fill(study, f"m{i}", {1: [0.5, 0.52]}, commit=f"{i}" * 40, dirty=i == 3)
    run(study)
    text = (study / "REPORT.md").read_text()
    assert "5 [commits](#made-by), 1 of them with uncommitted changes." in text
    assert "| `m3` | 1 | 3333333333 (dirty: with uncommitted changes) | Abacus (cpu, 1 thread, bf16) |" in text
    assert text.count("3333333333") == 1


def test_a_study_measured_again_is_one_row_of_the_overview(study):
    again = study.parent / "again"
    recommend_study(study)
    shutil.copytree(study, again)
    change_plan(again, confirms="tiny")
    (again / "plan.json").write_text((again / "plan.json").read_text().replace('"study": "tiny"', '"study": "again"'))
    fill(study, "warm_start", {0.5: [0.53, 0.55], 1: [0.69, 0.71]}, reused=["weights"])
    run(study), run(again)
    text = write_overview(study.parent).read_text()
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(lines) == 1 and lines[0].startswith("| [again](again/REPORT.md), after [tiny](tiny/REPORT.md) | nothing is new |")
    charged = "past charged: `warm_start` (1); past paid: `warm_start` at budget 1, +20.0 [+20.0, +20.0] points (tiny)"
    assert lines[0].endswith(f"| {charged} |")                # what the second did not measure is the first's
    tiny = text.partition("## tiny\n\n")[2]
    assert tiny.startswith("**Superseded:** its strongest were measured again on other seeds, which decides: "
                           "[again](again/REPORT.md). "
                           "The past runs underfit: nothing is said about runs that memorize.\n\n- ")
    assert tiny.count("**") == 2 and "**" in text.partition("## again")[2].partition("## tiny")[0]


@pytest.mark.parametrize("scores_of_one, said", [([0.7, 0.7], ""), ([0.4, 0.7], " (not established)")])
def test_what_reloading_gains_with_the_past_paid_says_whether_it_is_established(study, scores_of_one, said):
    recommend_study(study)
    fill(study, "warm_start", {0.5: [0.54, 0.54], 1: scores_of_one}, reused=["weights"])
    paid, = (item["paid"] for item in run(study)["recommendations"] if item["kind"] == "reload weights")
    assert re.fullmatch(r"`warm_start` at budget 1, [+−]\d+\.\d \[[^]]+\] points" + re.escape(said), paid)


def test_same_runs_same_bytes_and_figures(study, drawn):
    recommend_study(study)
    names = ["REPORT.md", "report.json", *(f"figures/{name}.png" for name in (
        "tradeoff", "accuracy_over_cost", "speedup", "step_cost"))]
    before = {name: (study / name).read_bytes() for name in names}
    run(study)
    assert before == {name: (study / name).read_bytes() for name in names}
    for name in names[2:]:
        width, height = struct.unpack(">II", before[name][16:24])           # of the PNG's header
        assert f"({name})" in before["REPORT.md"].decode() and len(before[name]) < 100_000 and width > height > 250
    assert str(study) not in before["REPORT.md"].decode() + before["report.json"].decode()


def test_counted_seconds_are_compared_within_one_version_of_the_code_only(study):
    fill(study, "kd", {0.5: [0.44, 0.46], 1: [0.54, 0.56]})
    fill(study, "late", {0.5: [0.44, 0.46], 1: [0.54, 0.56]}, commit="b" * 40)
    report = run(study)
    assert not report["timed_alike"] and row(report, "kd", 1)["equal_seconds"]["mean"] == pytest.approx(0.05)
    late = row(report, "late", 1)
    assert late["equal_flops"]["mean"] == pytest.approx(0.05) and late["equal_seconds"]["reason"] == "not comparable"
    assert score(report, "late")["step_cost"] == {"budget": 1, "flops": 1, "seconds": None}
    assert score(report, "late")["targets"]["full"]["speed_up"]["seconds"]["status"] == "not comparable"
    assert score(report, "late")["targets"]["full"]["speed_up"]["flops"]["value"] == pytest.approx(2 ** 0.5)


def test_counted_seconds_are_compared_where_steps_of_the_same_arithmetic_took_the_same_time_only(study):
    fill(study, "kd", {1: [0.54, 0.56]}, seconds=400)                       # as much slower as it may be
    add(study, "kd", 2, 0, 0.6, seconds=100)
    add(study, "kd", 2, 1, 0.6, seconds=109)
    assert run(study)["timed_alike"]
    add(study, "late", 2, 0, 0.6, seconds=100)
    add(study, "late", 2, 1, 0.6, seconds=112)
    report = run(study)
    assert not report["timed_alike"] and row(report, "late", 2)["equal_seconds"]["reason"] == "not comparable"
    assert row(report, "kd", 1)["equal_seconds"]["reason"] != "not comparable"
    add(study, "scratch", 4, 0, 0.62, seconds=56)                           # scratch's others took 50
    assert row(run(study), "kd", 1)["equal_seconds"]["reason"] == "not comparable"


def test_methods_at_one_budget_stand_side_by_side_and_not_in_the_headline(study, tmp_path, drawn):
    # at budget 1/2, 50 FLOPs, scratch has .40; scratch gets to .45 at 50 sqrt 2 FLOPs
    fill(study, "best", {0.5: [0.45, 0.45]}, preparation=(0, 0), reused=["model"])
    fill(study, "worse", {0.5: [0.42, 0.42]})
    fill(study, "warm_start", {0.5: [0.54, 0.54]}, reused=["weights"], start=0.5)
    fill(study, "shrink", {0.5: [0.50, 0.50]}, reused=["weights"], start=0.2)
    add(study, "late", 0.5, 0, None)
    report = run(study)
    text = (study / "REPORT.md").read_text()
    head, side = (text.split(f"## {name}")[1].split("\n## ")[0] for name in ("Headline", "Side by side"))
    assert report["common_budget"] == 0.5 and "`scratch`" in head and "`best`" not in head
    assert "five more methods or variants" in head
    assert re.findall(r"^\| `(\w+)`", side, re.M) == ["best", "worse", "late", "warm_start", "shrink"]
    assert "| `best` | 2/2 | 45.0 ± 0.0 | +5.0 [" in side and "| 1.41 [" in side
    assert "| `shrink` | 2/2 | 50.0 ± 0.0 | −4.0 [−4.0, −4.0] |" in side and "landscape" in report["figures"]
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- result -->\n<!-- result -->\n" + "".join(
        f"| `methods/{name}.py` | x | old |\n" for name in ("best", "shrink", "late", "other")))
    write_readme(study, readme)
    cells = dict(re.findall(r"methods/(\w+).py` \| x \|(.*)\|", readme.read_text()))
    assert cells["best"].startswith(" +5.0 [") and cells["shrink"] == " −4.0 [−4.0, −4.0] (w) "
    assert cells["late"] == " missing " and cells["other"] == " "


def test_what_was_chosen_on_other_seeds_is_compared_with_the_first(study):
    fill(study, "kd", {0.5: [0.52, 0.54], 1: [0.6, 0.62]})
    fill(study, "ema", {0.5: [0.45, 0.45], 1: [0.6, 0.66]})
    run(study)
    assert "## Against" not in (study / "REPORT.md").read_text()                # there the first is the largest of them
    change_plan(study, confirms="another")
    report = run(study)
    assert report["first"] == "kd" and "over_first" not in row(report, "kd", 1)
    # ema's differences are -.07 and -.09, then 0 and .04: half t(2) * sqrt(.001 / 2) / sqrt 2
    cell = row(report, "ema", 1)["over_first"]
    assert (cell["mean"], cell["half"]) == (pytest.approx(0.02), pytest.approx(T[2] * 0.0005 ** 0.5 / 2 ** 0.5, rel=1e-3))
    section = (study / "REPORT.md").read_text().partition("## Against `kd`\n")[2].partition("\n## ")[0]
    assert "| Method | at budget 1/2 | at budget 1 |" in section
    assert "| `ema` | −8.0 [−14.8, −1.2]† | +2.0 [−4.8, +8.8] |" in section


def test_figures_show_methods_at_one_budget_where_scratch_alone_has_more(study):
    def shown():
        return {score["method"] for score in methods_drawn(aggregate(read_study(study)))}

    fill(study, "one", {0.5: [0.42, 0.42]})
    fill(study, "another", {0.5: [0.43, 0.43]})
    assert shown() == {"scratch", "one", "another"}
    fill(study, "several", {0.25: [0.3, 0.3], 0.5: [0.44, 0.44]})
    assert shown() == {"scratch", "several"}


def test_the_overview_s_figure_has_each_study_s_best(study, monkeypatch):
    slow = shutil.copytree(study, study.parent / "slow")
    (slow / "plan.json").write_text((slow / "plan.json").read_text().replace('"study": "tiny"', '"study": "slow"'))
    fill(slow, "ema", {0.25: [0.35, 0.35]})
    fill(study, "kd", {0.5: [0.5, 0.5], 1: [0.6, 0.6]})
    fill(study, "ema", {0.5: [0.45, 0.45], 1: [0.55, 0.55]})
    run(study), run(slow)
    drawn = []
    monkeypatch.setattr("common.report.figures.save", lambda figure, path: drawn.append(figure))
    assert "![How many times cheaper](overview.png)" in write_overview(study.parent).read_text()
    said = {text.get_text() for text in drawn[0].findobj(Text)}
    assert {"nothing is new, tiny:\nkd", "nothing is new, slow", "none gets there, in the budgets that were measured"} <= said
    assert any(text.startswith("2.00 [") for text in said)


def test_tags_make_methods_of_their_own(study):
    fill(study, "kd", {1: [0.5, 0.52]})
    fill(study, "kd", {1: [0.6, 0.62]}, tag="sample")
    report = aggregate(read_study(study))
    assert row(report, "kd", 1)["mean"] == pytest.approx(0.51)
    assert row(report, "kd-sample", 1)["mean"] == pytest.approx(0.61)


def test_folder_without_plan_gets_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert main(["--tensorboard", str(tmp_path)]) == 2


def test_damaged_run_is_named(study):
    (study / "scratch/e8/seed0/summary.json").write_text("{")
    with pytest.raises(Refused, match="scratch/e8/seed0/summary.json is damaged"):
        write_report(study)


def test_tensorboard_rebuilds_every_run(study, monkeypatch, capsys):
    rebuilt = []
    monkeypatch.setattr("common.log.rebuild_tensorboard", rebuilt.append)
    assert main(["--tensorboard", str(study)]) == 0
    assert len(rebuilt) == 10 and study / "past/seed100" in rebuilt and not (study / "REPORT.md").exists()


def dense(study: Path, score: str) -> Path:
    """The study of `study` with another score, and methods whose recommendations speak."""
    for seed in (100, 101):
        add(study, "past", 1, seed, 0.45, score=score)
    fill(study, "scratch", SCRATCH, score=score)
    fill(study, "fast", {0.25: [0.39, 0.415], 0.5: [0.49, 0.51], 1: [0.59, 0.612]}, reused=["model"], score=score)
    fill(study, "bad", {0.5: [0.3, 0.32], 1: [0.4, 0.421]}, score=score)
    fill(study, "warm_start", {0.5: [0.54, 0.54]}, reused=["weights"], start=0.5, score=score)
    fill(study, "beyond", {0.5: [0.7, 0.72]}, score=score)                  # scratch never gets there
    return study


NAMES = {"miou": ("mean IoU", "train pixel accuracy", "Train pixels %"),
         "map": ("mAP (IoU .5 to .95)", "train objects found", "Train objects found %")}


@pytest.mark.parametrize("name", NAMES)
def test_report_calls_the_score_by_its_name(tmp_path, name):
    noun, train, column = NAMES[name]
    report = run(dense(tmp_path / "tiny", name))
    assert report["score"] == name and report["full_accuracy"] == pytest.approx(0.5)
    assert (report["past"]["runs"][0]["test_accuracy"], row(report, "warm_start", 0.5)["start"]) == (0.45, 0.5)
    text = (tmp_path / "tiny/REPORT.md").read_text()
    for said in (f"Full {noun} is **50.0 ± ", f"## Cost to full {noun} (50.0 %)", f"## Cost to full {noun} − 1 point (49.0 %)",
                 f"## Cost to full {noun} + 1 point (51.0 %)", f"Past runs: {train} 45.0 %", f"| beyond scratch's {noun} |",
                 f"| {column} | Test {noun} % |", f"on the way to full {noun}: **`fast`**", f"For {noun} at equal FLOPs: **`",
                 "their train loss is 0.300, their test loss 0.800",
                 f"Cheaper than scratch at its {noun}, FLOPs", f"- **Full {noun}** is the mean last-epoch test {noun} of"):
        assert said in text, said
    # no word of another task is left, file names aside
    assert "accuracy" not in text.replace("pixel accuracy", "").lower() and "| Test % |" not in text
    readme = tmp_path / "README.md"
    readme.write_text("<!-- result -->\n<!-- result -->\n")
    write_readme(tmp_path / "tiny", readme)
    for said in (f"| Test {noun} % at budget 1/4 |", f"| Speed-up to full {noun}, FLOPs |", f"![Test {noun} over budget]"):
        assert said in readme.read_text(), said


def test_parts_of_another_score(tmp_path):
    fill(tmp_path, "scratch", {1: [0.5, 0.5]}, score="miou")
    for seed in (0, 1):
        path = tmp_path / f"scratch/e8/seed{seed}/summary.json"
        summary = json.loads(path.read_text())
        path.write_text(json.dumps(summary | {"test": summary["test"] | {"miou_old": 0.6, "miou_new": 0.25}}))
    one = row(run(tmp_path), "scratch", 1)
    assert (one["test_old"], one["test_new"]) == (0.6, 0.25)
    assert "| Test mean IoU old % | Test mean IoU new % |" in (tmp_path / "REPORT.md").read_text()


def test_old_and_new_parts_have_intervals_of_their_own(tmp_path):
    """By hand: scratch .60 and .64 on the old part, kd .05 and .07 more: 6 points, t(1) = 12.7062 times 1.4142 / sqrt(2)."""
    fill(tmp_path, "scratch", {1: [0.5, 0.5]})
    fill(tmp_path, "kd", {1: [0.6, 0.6]}, reused=["model"])
    for method, old in (("scratch", (0.60, 0.64)), ("kd", (0.65, 0.71))):
        for seed in (0, 1):
            path = tmp_path / f"{method}/e8/seed{seed}/summary.json"
            summary = json.loads(path.read_text())
            path.write_text(json.dumps(summary | {"test": summary["test"] | {"accuracy_old": old[seed], "accuracy_new": 0.25}}))
    found = row(run(tmp_path), "kd", 1)["apart_test_old"]
    half = 12.7062 * 0.01
    assert found["mean"] == pytest.approx(0.68) and found["values"] == {"0": 0.65, "1": 0.71}
    assert [found["difference"][key] for key in ("mean", "low", "high")] == pytest.approx(
        [0.06, 0.06 - half, 0.06 + half], abs=1e-5)
    assert "| `kd` | 1 | 2/2 | 68.0 ± 38.1 | +6.0 [−6.7, +18.7] |" in (tmp_path / "REPORT.md").read_text()


@pytest.mark.parametrize("name, noun, column", [
    ("miou", "pixel accuracy", "Test pixels %"), ("map", "mAP (IoU .5)", "Test mAP (IoU .5) %")])
def test_the_second_score_has_a_table_with_intervals_of_its_own(tmp_path, name, noun, column):
    """In these runs it is half of the first, and so is every interval."""
    fill(dense(tmp_path, name), "dash", {0.5: [0.50, 0.54]}, reused=["weights"], score=name)
    add(tmp_path, "kd", 1, 0, None)
    report, text = run(tmp_path), (tmp_path / "REPORT.md").read_text()
    scratch = row(report, "scratch", 1)
    assert scratch["second"]["values"] == {"0": pytest.approx(0.245), "1": pytest.approx(0.255)}
    assert "second" not in row(report, "kd", 1)
    assert scratch["second"]["high"] - scratch["second"]["mean"] == pytest.approx((scratch["high"] - scratch["mean"]) / 2)
    fast, dash = row(report, "fast", 0.5), row(report, "dash", 0.5)
    for one, names in ((fast, ("difference", "equal_flops")), (dash, ("gain_over_scratch_2", "gain_over_warm_start"))):
        for cell, first in ((one["second"][other], one[other]) for other in names):
            assert {end: cell[end] for end in ("mean", "low", "high")} == {
                end: pytest.approx(first[end] / 2) for end in ("mean", "low", "high")}
        assert "equal_seconds" not in one["second"]
    table = text.partition(f"\n## The second score: {noun}\n")[2].partition("\n## ")[0]
    assert table.count(column) == 1 == text.count(column)
    # to warm_start: half of -4 and of 0, whose standard deviation over sqrt 2 is 1, times the 12.7 of one degree of freedom
    assert re.search(r"^\| `fast` \| 1/2 \| 2/2 \| 25.0 ± ", table, re.M) and "| `kd` |" not in table
    assert re.search(r"^\| `dash` \| 1/2 \| 2/2 \| 26.0 ± 12.7 \| .* \| −1.0 \[−13.7, \+11.7\] \| ", table, re.M)


def test_classification_has_neither_a_second_score_nor_losses(study):
    report, text = run(study), (study / "REPORT.md").read_text()
    assert "second" not in row(report, "scratch", 1) and "loss" not in report["past"] and "train loss" not in text
    assert "| Test % | Over scratch, equal budget |" in text


def test_dense_recommendations_say_the_past_runs_losses_for_a_regime(tmp_path):
    said = "The regime of the past runs is unknown; their train loss is 0.300, their test loss 0.800."   # (.25 + .35) / 2
    assert run(dense(tmp_path, "miou"))["holds_for"] == said and f" {said}\n" in (tmp_path / "REPORT.md").read_text()


def test_a_score_that_is_no_number_is_called_by_its_name(tmp_path):
    add(tmp_path, "scratch", 1, 0, math.nan, score="miou")
    assert run(tmp_path)["failed"][0]["message"] == "finished, but its test mean IoU is not a number"


@pytest.mark.parametrize("name, noun", [("accuracy", "accuracy"), ("miou", "mean IoU")])
def test_figures_call_the_score_by_its_name(tmp_path, drawn, monkeypatch, name, noun):
    figures = {}
    for module in ("figures", "landscape"):
        monkeypatch.setattr(f"common.report.{module}.save", lambda figure, path: figures.update({path.stem: figure}))
    run(dense(tmp_path, name))
    said = {stem: {text.get_text() for text in figure.findobj(Text)} for stem, figure in figures.items()}
    assert {f"test {noun}, %", f"full {noun}"} <= said["tradeoff"] and f"test {noun}, %" in said["accuracy_over_cost"]
    assert {f"to full {noun}", f"to full {noun} − 1 point"} <= said["speedup"]
    assert f"points of test {noun}" in said["landscape"]
    line = next(line for line in figures["accuracy_over_cost"].axes[0].get_lines() if line.get_label() == "scratch, budget 1")
    assert list(line.get_ydata()) == pytest.approx([1, 50])                 # before training and after it, in percent


def test_tuning_table_of_another_score(tmp_path):
    for seed, value in enumerate((0.397, 0.414)):
        add(tmp_path, "scratch", 0.5, seed, value, score="miou")
    runs = json.loads((tmp_path / "plan.json").read_text())["runs"]
    change_plan(tmp_path, tuning=True, runs=[one | {"command": f"python x --holdout 0.1 --lr 0.{i + 1} --weight-decay 0.001"}
                                             for i, one in enumerate(runs)])
    text = write_report(tmp_path).read_text()
    assert "for each budget by mean IoU on held-out" in text
    assert "| Held-out mean IoU % | Held-out loss, nats | Train pixel accuracy % |" in text
    assert "| 0.1 | 0.001 | 39.70 | 0.800 | 45.0 |" in text and "| 0.2 | 0.001 | **41.40** | 0.800 | 45.0 |" in text
    table = json.loads((tmp_path / "tuning.json").read_text())
    assert table["score"] == "miou" and [one["accuracy"] for one in table["rows"]] == [0.397, 0.414]


def test_search_of_another_score(tmp_path):
    for budget, value in ((0.25, 0.3), (0.5, 0.5), (1, 0.4)):
        add(tmp_path, "scratch", budget, 0, value, score="map")
    search = {"method": "scratch", "budget": 1, "seed": 0, "trials": [f"scratch/e{epochs}/seed0" for epochs in (2, 4, 8)]}
    change_plan(tmp_path, searches=[search])
    report = run(tmp_path)
    assert report["score"] == "map" and report["rows"][0]["delivered"]["mean"] == 0.5
    text = (tmp_path / "REPORT.md").read_text()
    assert "**Delivered** is the mAP (IoU .5 to .95) of its best trial" in text and "accuracy" not in text and "{" not in text


def test_a_study_of_several_scores_is_refused(study):
    add(study, "kd", 1, 0, 0.6, score="miou")
    with pytest.raises(Refused, match=r"tiny mixes scores \(accuracy in past/seed100 and miou in kd/e8/seed0\)"):
        write_report(study)
    for other in ({"tuning": True}, {"searches": [{"method": "kd", "budget": 1, "seed": 0, "trials": [
            "scratch/e8/seed0", "kd/e8/seed0"]}]}):
        change_plan(study, tuning=False)
        change_plan(study, **other)
        with pytest.raises(Refused, match="mixes scores"):
            write_report(study)


def test_trunks_of_another_task_may_have_another_score(tmp_path):
    dense(tmp_path, "miou")
    add(tmp_path, "past", 1, 102, 0.9)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "trunks").mkdir()
    (tmp_path / "past/seed102").rename(tmp_path / "trunks/seed102")
    change_plan(tmp_path, past=[*plan["past"][:2], plan["past"][2] | {"folder": "trunks/seed102"}])
    report = run(tmp_path)
    assert report["score"] == "miou" and [one["test_accuracy"] for one in report["past"]["runs"]] == [0.45, 0.45]
    assert [one["test"] for one in report["trunks"]] == [0.9]
    assert "| `trunks/seed102` | `unknown` | 102 | finished | 8 | " in (tmp_path / "REPORT.md").read_text()


def test_a_score_without_words_is_refused(tmp_path):
    add(tmp_path, "scratch", 1, 0, 0.5, score="bleu")
    with pytest.raises(Refused, match="seed0 has the score 'bleu', the report knows accuracy, miou, map"):
        write_report(tmp_path)


@pytest.mark.parametrize("measured, candidates, cell", [
    (0, 6, "not measured that far"), (2, 6, "none of 2 measured that far"), (6, 6, "none of 6"), (0, 0, "none of 0")])
def test_overview_counts_only_what_was_measured_far_enough(measured, candidates, cell):
    item = {"kind": "save compute, full", "method": None, "measured": measured, "candidates": candidates}
    assert answer({"blocked": [], "recommendations": [item]}, "save compute, full") == cell


def test_overview_calls_each_study_s_score_by_its_own_name(tmp_path):
    for name in NAMES:
        write_report(dense(tmp_path / name, name))
    text = write_overview(tmp_path).read_text()
    assert "full mean IoU 50.0 % | train pixel accuracy 45.0 %" in text
    assert "full mAP (IoU .5 to .95) 50.0 % | train objects found 45.0 %" in text
    assert "| To save compute on the way to full score | For score at equal FLOPs |" in text
    (tmp_path / "map/report.json").unlink()
    assert "| To save compute on the way to full mean IoU | For mean IoU at equal FLOPs |" in write_overview(tmp_path).read_text()


def strip(shade: int) -> bytes:
    return bytes([shade] * 9)                                               # only copied, never decoded


def test_pictures_of_scratch_stand_beside_those_of_the_best_method(tmp_path):
    for budget, seed, shade in ((0.5, 0, 1), (1, 1, 2), (1, 0, 3), (2, 0, 4)):
        add(tmp_path, "scratch", budget, seed, 0.5, score="miou", picture=strip(shade))
    for method, budget, seed, value, shade in (
            ("kd", 1, 0, 0.60, 5), ("kd", 1, 1, 0.62, 6), ("ema", 1, 0, 0.55, 7), ("dkd", 0.5, 0, 0.9, 8),
            ("no", 1, 0, 0.9, None)):
        add(tmp_path, method, budget, seed, value, score="miou", picture=None if shade is None else strip(shade))
    add(tmp_path, "half", 1, 0, 0.95, score="miou", picture=strip(9))
    add(tmp_path, "half", 1, 1, None)                                       # an incomplete row is not the best
    report = run(tmp_path)
    assert report["pictures"] == [{"name": "pictures_scratch", "method": "scratch", "budget": 1, "seed": 0},
                                  {"name": "pictures_best", "method": "kd", "budget": 1, "seed": 0}]
    figures = tmp_path / "figures"
    assert [(figures / f"pictures_{which}.png").read_bytes() for which in ("scratch", "best")] == [strip(3), strip(5)]
    section = (tmp_path / "REPORT.md").read_text().split("## Pictures")[1].split("\n## ")[0]
    assert "| ![scratch](figures/pictures_scratch.png) | ![kd](figures/pictures_best.png) |" in section
    assert "by the run of seed 0, a row each" in section
    assert "| `scratch`, budget 1: 50.0 ± " in section and "| `kd`, budget 1: 61.0 ± " in section
    assert "`kd` has the highest of the methods with pictures at this budget." in section and "<sub>Abacus" in section
    # without others' pictures there, the largest budget where both have some; else the highest of the rest; else no section
    for path in tmp_path.glob("[kehn]*/e8/*/pictures.png"):
        path.unlink()
    assert [picture["budget"] for picture in run(tmp_path)["pictures"]] == [0.5, 0.5]
    assert [(figures / f"pictures_{which}.png").read_bytes() for which in ("scratch", "best")] == [strip(1), strip(8)]
    next(tmp_path.glob("scratch/e4/*/pictures.png")).unlink()
    add(tmp_path, "ema", 0.25, 3, 0.3, score="miou", picture=strip(10))
    assert run(tmp_path)["pictures"][1] == {"name": "pictures_best", "method": "dkd", "budget": 0.5, "seed": 0}
    assert "`dkd` has the highest of the methods with pictures." in (tmp_path / "REPORT.md").read_text()


def test_pictures_outlive_a_clone_without_those_of_the_runs(tmp_path):
    for method, value, shade in (("scratch", 0.5, 1), ("kd", 0.6, 2)):
        add(tmp_path, method, 1, 0, value, score="miou", picture=strip(shade))
    shown, text = run(tmp_path)["pictures"], (tmp_path / "REPORT.md").read_text()
    for path in tmp_path.glob("*/e*/*/pictures.png"):
        path.unlink()
    figures = tmp_path / "figures"
    assert run(tmp_path)["pictures"] == shown and (tmp_path / "REPORT.md").read_text() == text
    assert [(figures / f"pictures_{which}.png").read_bytes() for which in ("scratch", "best")] == [strip(1), strip(2)]
    (figures / "pictures_best.png").unlink()                                # one that is gone is not shown
    assert [picture["name"] for picture in run(tmp_path)["pictures"]] == ["pictures_scratch"]
    (figures / "pictures_scratch.png").unlink()
    assert "pictures" not in run(tmp_path) and "Pictures" not in (tmp_path / "REPORT.md").read_text()


def test_bar_and_hparams_show_the_run_s_score(tmp_path):
    config = {"created": 0.0, "args": {"lr": 0.1}, "command": "python x"}
    for data, tag in (({"score": "miou"}, b"test/miou"), ({}, b"test/accuracy")):
        TensorBoard(tmp_path, config | {"data": data}, []).close()
        events = b"".join(path.read_bytes() for path in (tmp_path / "tb").iterdir())
        assert tag in events and events.count(b"test/") == 2                # and test/loss
    shown = {}
    bar = Bar("x", 1, hidden=True)
    bar.bar.set_postfix = shown.update
    bar.show({"epoch": 1, "train/loss": 1.5, "train/correct": 0.9, "test/miou": 0.25, "test/pixel_accuracy": 0.75})
    assert shown == {"loss": "1.500", "test miou": "0.250"}
    shown.clear()
    bar.show({"epoch": 0, "test/accuracy": 0.5, "test/loss": 2.0})
    assert shown == {"test accuracy": "0.500"}
    bar.close()


def test_compiled_and_captured_runs_and_other_arithmetic_are_not_timed_alike():
    def device(arithmetic="bf16", **flags):
        config = {"device": {"name": "Chip", "type": "cuda", "threads": 2, "arithmetic": arithmetic}, "versions": {},
                  "commit": "a" * 40, "dirty": False, "data": {"fingerprint": "f"}, "args": {"batch_size": 8, **flags}}
        return provenance([{"config": config}])["device"]

    assert device() == device(compile=False, graph=False) == ["Chip (cuda, 2 threads, bf16)"]
    assert device(compile=True) == ["Chip (cuda, 2 threads, compiled, bf16)"]
    assert device("float32", graph=True) == ["Chip (cuda, 2 threads, captured, float32)"]
