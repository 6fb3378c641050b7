"""What is committed under results/: reports are of the committed runs, past runs are whole, the README shows the report."""
import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_report import numbers

from common.log import read_rows
from common.planning import plan
from common.plans import studies
from common.report import read_study, write_readme, write_report
from common.report.landscape import cheaper
from common.report.overview import write_overview
from common.report.runs import kind
from common.report.tuning import best, pairs
from common.report.words import point_interval, speed_up
from common.runfiles import read_weights
from common.tasks import TASKS

COMMITTED = subprocess.run(["git", "-C", ROOT, "ls-files", "results"], capture_output=True, text=True, check=True).stdout
STUDIES = sorted({line.split("/")[1] for line in COMMITTED.splitlines() if line.endswith("/plan.json")})


@pytest.fixture
def copy(tmp_path):
    """A study's JSON files, to report on anew, and those of the studies whose past runs or scratch it has."""
    def made(name):
        ignore = shutil.ignore_patterns("*.pt", "*.npz", "tb", "figures", "REPORT.md", "report.json", "TUNING.md", "tuning.json")
        for owner in {studies()[name].past_of, studies()[name].scratch_of} - {""}:
            made(owner)
        return shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name, ignore=ignore, dirs_exist_ok=True)
    return made


@pytest.mark.parametrize("name", STUDIES)
def test_report_is_of_the_committed_runs(name, copy):
    folder = copy(name)
    written = write_report(folder)
    for file in (written.name, "tuning.json" if written.name == "TUNING.md" else "report.json"):
        assert (folder / file).read_text() == (ROOT / "results" / name / file).read_text(), \
            f"results/{name}/{file} is not what `python -m common.report results/{name}` writes: run it and commit"


@pytest.mark.parametrize("name", STUDIES)
def test_plan_is_the_code_s(name):
    assert json.loads((ROOT / "results" / name / "plan.json").read_text()) == json.loads(json.dumps(plan(name, studies()[name])))


@pytest.mark.parametrize("name", STUDIES)
def test_committed_past_runs_are_whole(name):
    scripts = {run["command"].split()[1] for run in plan(name, studies()[name])["runs"]}
    reads = any(".checkpoints()" in (ROOT / script).read_text() for script in scripts)
    for run in read_study(ROOT / "results" / name)["past"]:
        folder = ROOT / "results" / name / run["folder"]
        if run["summary"] is None:
            continue                                          # the report counts it as missing
        assert all(torch.isfinite(w).all() for w in read_weights(folder / "final.pt").values())
        assert (folder / "examples.npz").exists()
        kept = any((folder / "checkpoints").glob("e*.pt"))
        if kind(run) == "past":
            assert kept or not reads
        else:                                                 # of runs that left out a fold, nothing reads a checkpoint
            assert not kept
        assert run["config"]["args"]["slim"] and not run["config"]["dirty"]


# their first epochs were lost on the way from the machine; FINDINGS says so
CUT = {f"results/cifar100-short/cifar100-resnet56/scratch/e20/seed{seed}/metrics.jsonl" for seed in (0, 1, 2)}


def test_committed_curves_are_whole():
    """From the preparation to the summary: epochs 0 to the last, each once."""
    cut = set()
    for path in (line for line in COMMITTED.splitlines() if line.endswith("/metrics.jsonl")):
        if not (ROOT / path).with_name("summary.json").exists():          # one that diverged
            continue
        rows, summary = read_rows((ROOT / path).parent), json.loads((ROOT / path).with_name("summary.json").read_text())
        *epochs, last = [row["epoch"] for row in rows]            # the last one may be a part of an epoch: 3.75
        assert epochs == list(range(epochs[0], math.ceil(last))) and last == summary["epochs"], path
        assert rows[-1]["steps"] == summary["steps"] and rows[-1]["flops"] == sum(summary["flops"].values()), path
        assert all(a["flops"] <= b["flops"] and a["seconds"] <= b["seconds"] for a, b in pairwise(rows)), path
        cut |= {path} if epochs[0] else set()
    assert cut == CUT


def test_readme_shows_the_report(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    monkeypatch.chdir(ROOT)
    folder = (ROOT / "results" / "cifar100-mini-fresh").relative_to(ROOT)
    write_readme(folder, readme)
    assert readme.read_text() == (ROOT / "README.md").read_text(), \
        "run `python -m common.report --readme results/cifar100-mini-fresh` and commit"


REPORTS = [path for path in COMMITTED.splitlines() if path.count("/") == 2 and path.endswith("/report.json")]


def test_committed_pictures_are_those_of_committed_runs():
    """A report made anew in a clone shows what it showed, so what a study picks from is committed with it."""
    for path in map(Path, REPORTS):
        report = json.loads((ROOT / path).read_text())
        planned = json.loads((ROOT / path.parent / "plan.json").read_text())["runs"]
        for shown in report.get("pictures", []):
            own, = (run["folder"] for run in planned if (run["budget"], run["seed"]) == (shown["budget"], shown["seed"])
                    and f"{run['method']}-{run['tag']}".rstrip("-") == shown["method"])
            files = path.parent / "figures" / f"{shown['name']}.png", path.parent / own / "pictures.png"
            assert {file.as_posix() for file in files} <= set(COMMITTED.splitlines())
            assert (ROOT / files[0]).read_bytes() == (ROOT / files[1]).read_bytes()


def intervals(row) -> set[str]:
    """Every comparison of a row as the report prints it."""
    others = [row[name] for name in row if name in ("second", "rival") or name.startswith("apart_")]
    cells = [cell for cell in [*row.values(), *(cell for other in others for cell in (other or {}).values())]
             if isinstance(cell, dict) and "reason" in cell and cell["mean"] is not None]
    return {point_interval(cell) for cell in cells} | ({cheaper(row)} if row.get("cheaper") else set())


def test_findings_say_what_the_reports_say():
    """Intervals of each bullet and table row are those of a method that it names, marked where they hold by pooling alone.

    Each other number stands in a report or a tuning table. So are those of each row and bullet of README's
    first part and of TABLE.md.

    Of the studies in the section's heading, or of those that they measure again; README's and the table's, of any.
    """
    known, said, also = {}, {}, {}                            # study -> numbers; -> method -> intervals; -> which it confirms
    for path in COMMITTED.splitlines():
        if path.endswith("/tuning.json"):
            table, there = json.loads((ROOT / path).read_text()), known.setdefault(path.split("/")[1], set())
            numbers(table, there)
            for one in {(row["method"], row["budget"]) for row in table["rows"]}:
                numbers(pairs([row for row in table["rows"] if (row["method"], row["budget"]) == one]), there)
    for path in REPORTS:
        report, study = json.loads((ROOT / path).read_text()), path.split("/")[1]
        numbers(report, known.setdefault(study, set()))
        own, also[study] = said.setdefault(study, {}), {report.get("confirms", study)}
        for row in report["rows"]:
            own.setdefault(row["method"].partition(",")[0], set()).update(intervals(row))     # `scratch, then in full`
        for score in report.get("scores", ()):
            own[score["method"]].update(speed_up(target["speed_up"]["flops"]) for target in (score["targets"] or {}).values()
                                        if target["speed_up"]["flops"])
    count = 0
    first = (ROOT / "README.md").read_text().partition("<!-- result -->")[0] + (ROOT / "results" / "TABLE.md").read_text()
    sections = [(*part.split(":", 1),) for part in (ROOT / "results" / "FINDINGS.md").read_text().split("\n## ")[1:]]
    assert {study for heading, _ in sections for study in heading.split(", ")} <= known.keys()
    for studies_, bullets in [({one for study in heading.split(", ") for one in also.get(study, set()) | {study}},
                               re.split(r"\n[-|] ", text)[1:]) for heading, text in sections] \
            + [(set(known), [text.partition("\n\n")[0] for text in re.split(r"\n[-|] ", first)[1:]])]:
        numbers_said = set().union(*(known[study] for study in studies_))
        for bullet in (" ".join(bullet.split()) for bullet in bullets):
            named = set().union(*(said[study].get(name, set()) for study in studies_ & said.keys()
                                  for name in re.findall(r"`([\w-]+)`", bullet)))
            found = re.findall(r"[+−]?\d+\.\d+ \[[^]]+\]†?", bullet)
            assert set(found) <= named, f"{bullet[:60]}: {set(found) - named}"
            rest = re.findall(r"\d+\.\d+", re.sub(r"`[^`]*`|\([^)]*\)", "", bullet))
            assert set(rest) <= numbers_said, f"{bullet[:60]}: {set(rest) - numbers_said}"
            count += len(found)
    assert count > 10


def cell(study: str, method: str, budget: float, *names: str) -> dict:
    """Of a row of that report: its own mean, or that of what is named."""
    found, = (row for row in json.loads((ROOT / f"results/{study}/report.json").read_text())["rows"]
              if (row["method"], row["budget"]) == (method, budget))
    for name in names:
        found = found[name]
    return {end: 100 * found[end] for end in ("mean", "low", "high")}


def faster(study: str, method: str, target: str = "full") -> dict:
    """How many times cheaper full accuracy is, or a point less."""
    found, = (score for score in json.loads((ROOT / f"results/{study}/report.json").read_text())["scores"]
              if score["method"] == method)
    found = found["targets"][target]["speed_up"]["flops"]
    return {"mean": found["value"], "low": found["low"], "high": found["high"]}


def compared_with_past_charged() -> dict:
    """Of the rows that reuse something: how many have a scratch that costs what they and their past runs did, how many lose."""
    cells = [row["past_charged"] for path in REPORTS for row in json.loads((ROOT / path).read_text()).get("rows", ())
             if row.get("reused") and row["complete"] and row.get("past_charged", {}).get("mean") is not None]
    return {"rows": len(cells), "below": sum(one["high"] < 0 for one in cells),
            "marked": sum(one["high"] < 0 and point_interval(one).endswith("†") for one in cells),
            "above": {1: "One is", 2: "Two are"}[sum(one["low"] > 0 for one in cells)]}


def readmes_words() -> list[tuple[str, dict]]:
    """Words of README's first part, and the numbers in them."""
    def gain(study, method):
        return cell(study, method, 0.5, "equal_flops")

    distil, memorized = faster("cifar100-mini-fresh", "dkd-early"), faster("grow-mini-augment-fresh", "warm_start-tuned")
    plain, flipped = faster("grow-mini-fresh", "warm_start-tuned"), faster("grow-mini-crop-flip", "warm_start")
    return [
        ("with as many epochs as scratch it ended {mean:.1f} points below", {"mean": -cell(
            "grow-mini-fresh", "shrink_perturb-tuned", 1, "over_first")["mean"]}),
        ("Of {rows} rows of all studies that can be compared", charged := compared_with_past_charged()),
        ("runs had together, {below} are below it ({marked} of them by pooling budgets alone). {above} established", charged),
        ("drop the teacher half-way: {mean:.1f} times cheaper", distil),
        ("begin with all of its layers but the last, {mean:.1f} times as cheap ({low:.2f} to at least {high:.2f}, fresh seeds)",
         faster("caltech101-mini-fresh", "warm_start-trunk")),
        ("half of scratch's epochs they end {mean:.1f} points above it, and", cell(
            "caltech101-mini-fresh", "warm_start-trunk", 0.5, "over_full")),
        ("brought {mean:.1f} points with half of the epochs", gain("caltech101-mini", "kd")),
        ("in all runs that is {mean:.1f} times cheaper ({low:.2f} to {high:.2f})", flipped),
        ("without augmentation {mean:.2f} times ({low:.2f} to {high:.2f}, fresh", memorized),
        ("it is {mean:.2f} times cheaper by the mean of five fresh seeds, which they do not establish", plain),
        ("and {mean:.2f} times ({low:.2f} to at least {high:.2f}) to a point less;",
         faster("grow-mini-fresh", "warm_start-tuned", "full-1")),
        ("gained {mean:.1f} points with half of the epochs when shrunk", gain("detection-mini-grow", "shrink_perturb")),
        ("perturbed, {mean:.1f} (not established) as they are", gain("detection-mini-grow", "warm_start")),
        ("gained {mean:.1f} points with half of the epochs, shrunk", gain("segmentation-mini-grow", "warm_start")),
        ("and perturbed {mean:.1f}; the two", gain("segmentation-mini-grow", "shrink_perturb")),
        ("deliver a model {mean:.1f} points better", cell("tuning-mini", "warm_start", 0.5, "delivered_test_over_scratch")),
        ("told apart from them ({mean:.1f} points, {low:.1f} to {high:.1f};",
         cell("tuning-mini", "warm_start", 0.5, "rival", "over")),
        ("scratch has {mean:.1f} % with half", cell("grow-mini", "scratch", 0.5)),
        ("are augmented ({mean:.2f} times, the interval begins at {low:.2f})", flipped),
        ("without old weights ({mean:.2f} times, the interval ends at {high:.2f})", distil),
        ("that had none ({mean:.2f} times, the interval ends at {high:.2f})", memorized),
        ("none is ({mean:.2f} times, the interval is open;", plain),
        ("three other seeds had {mean:.2f})", faster("grow-mini", "warm_start-tuned")),
    ]


def test_every_number_in_readmes_words_is_the_one_that_is_meant():
    """Those with an interval in brackets are looked at below, with what the findings say."""
    text = " ".join((ROOT / "README.md").read_text().partition("## What was found so far")[2].partition("<!-- result")[0].split())
    for words, values in readmes_words():
        words = words.format(**values).replace("-0", "−0")
        assert text.count(words) == 1, words
        text = text.replace(words, "")
    left = re.sub(r"[+−]\d+\.\d+ \[[^]]+\]|arXiv:[\d.]+", "", text)
    assert not re.findall(r".{30}\d+\.\d+", left)


def test_the_first_table_says_what_the_past_run_cost():
    rows = (ROOT / "README.md").read_text().partition("| You have |")[2].partition("\n\n")[0].splitlines()[2:]
    studies_of_rows = (("cifar100-mini-fresh", "dkd-early"), ("grow-mini-crop-flip", "warm_start"), (
        "grow-mini-augment-fresh", "warm_start-tuned"), ("grow-mini-fresh", "warm_start-tuned"), (
        "caltech101-mini-fresh", "warm_start-trunk"), ("classes-mini", "warm_start"), ("detection-mini", "kd"))
    for row, (study, method) in zip(rows, studies_of_rows, strict=True):
        assert f"(`{method}`)" in row or study == "detection-mini"
        report = json.loads((ROOT / f"results/{study}/report.json").read_text())["rows"]
        full, = (row["flops"] for row in report if (row["method"], row["budget"]) == ("scratch", 1))
        before, = {row["sequence_flops"] - row["flops"] for row in report if row["method"] == method}
        assert row.split("|")[4].strip() == f"{before / full:.2g}"


def test_overview_is_of_the_committed_reports(tmp_path):
    for path in REPORTS:
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / path)
    assert write_overview(tmp_path / "results").read_text() == (ROOT / "results" / "REPORT.md").read_text(), \
        "run `python -m common.report results` and commit"


@pytest.mark.parametrize("name", [name for name in STUDIES if name.removesuffix("-tuning") in set(studies()) - {name}])
def test_settings_are_those_that_the_tuning_chose(name):
    chooser = studies()[name.removesuffix("-tuning")]
    settings, options, usual = chooser.settings, chooser.options, TASKS[chooser.task].defaults["batch_size"]
    size = int(options[options.index("--batch-size") + 1]) if "--batch-size" in options else usual
    rows = [row for row in json.loads((ROOT / "results" / name / "tuning.json").read_text())["rows"]
            if row.get("batch_size", size) == size]
    if any(row["accuracy"] is None and not row.get("failed") for row in rows):
        assert not settings                                   # nothing is chosen before all have been tried
        return
    tuned = {}
    for budget in sorted({row["budget"] for row in rows}):
        found = best([row for row in rows if row["budget"] == budget])
        tuned[budget] = (found["lr"], found["weight_decay"])
    assert {budget: settings.get(budget) for budget in tuned} == tuned
    chosen = list(tuned.values())
    most = [one for one in chosen if chosen.count(one) == max(map(chosen.count, chosen))]
    assert all(one in most for budget, one in settings.items() if budget not in tuned)          # those between them


def test_warm_start_has_settings_as_good_as_the_best_where_past_runs_were_augmented_too():
    """Within the standard error of a share of the 961 held-out examples."""
    rows = json.loads((ROOT / "results/grow-mini-crop-flip-reuse-tuning/tuning.json").read_text())["rows"]
    study, found = studies()["grow-mini-crop-flip"], best(rows)["accuracy"]
    (lr, decay), = set(study.settings.values())
    used, = (row["accuracy"] for row in rows if (row["lr"], row["weight_decay"]) == (lr, decay))
    assert {runs.tag for runs in study.runs} == {""} and found - used < (found * (1 - found) / 961) ** 0.5


@pytest.mark.parametrize("name", ["grow-mini", "grow-mini-augment"])
def test_methods_named_tuned_have_the_best_settings_of_their_tuning(name):
    rows = json.loads((ROOT / f"results/{name}-reuse-tuning/tuning.json").read_text())["rows"]
    tuned = [runs for runs in studies()[name].runs if runs.tag == "tuned"]
    assert {runs.script.split("/")[1] for runs in tuned} == {row["method"] for row in rows} != set()
    for runs in tuned:
        found = best([row for row in rows if row["method"] == runs.script.split("/")[1]])
        assert runs.options == ("--lr", f"{found['lr']:g}", "--weight-decay", f"{found['weight_decay']:g}")


def test_past_runs_that_memorize_have_the_best_settings_of_those_that_do():
    rows = json.loads((ROOT / "results/grow-mini-tuning/tuning.json").read_text())["rows"]
    options = studies()["grow-mini"].past_options
    lr, decay, size = (float(options[options.index(name) + 1]) for name in ("--lr", "--weight-decay", "--batch-size"))
    found = best([row for row in rows if row["budget"] == 1 and row["accuracy"] is not None and row["train_accuracy"] >= 0.95
                  and row["batch_size"] == size])
    assert (lr, decay) == (found["lr"], found["weight_decay"])


@pytest.mark.parametrize("page", ["README.md", "results/FINDINGS.md", "results/TABLE.md", "results/REPORT.md"])
def test_every_path_a_page_links_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)[#)]", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
