"""What is committed under results/: reports are of the committed runs, past runs are whole, the README shows the report."""
import json
import re
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT
from test_report import numbers

from common.past import read_weights
from common.planning import plan
from common.plans import studies
from common.report import read_study, write_readme, write_report
from common.report.overview import write_overview

COMMITTED = subprocess.run(["git", "-C", ROOT, "ls-files", "results"], capture_output=True, text=True, check=True).stdout
STUDIES = sorted({line.split("/")[1] for line in COMMITTED.splitlines() if line.endswith("/plan.json")})


@pytest.fixture
def copy(tmp_path):
    """A study's JSON files, to report on anew."""
    def made(name):
        ignore = shutil.ignore_patterns("*.pt", "*.npz", "tb", "figures", "REPORT.md", "report.json", "TUNING.md", "tuning.json")
        return shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name, ignore=ignore)
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
    for run in read_study(ROOT / "results" / name)["past"]:
        folder = ROOT / "results" / name / run["folder"]
        if run["summary"] is None:
            continue                                          # the report counts it as missing
        assert all(torch.isfinite(w).all() for w in read_weights(folder / "final.pt").values())
        assert len(list((folder / "checkpoints").glob("e*.pt"))) >= 1 and (folder / "examples.npz").exists()
        assert run["config"]["args"]["slim"] and not run["config"]["dirty"]


def test_readme_shows_the_report(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    monkeypatch.chdir(ROOT)
    folder = (ROOT / "results" / "cifar100-mini").relative_to(ROOT)
    write_readme(folder, readme)
    assert readme.read_text() == (ROOT / "README.md").read_text(), \
        "run `python -m common.report --readme results/cifar100-mini` and commit"


def test_every_number_of_the_findings_stands_in_a_report():
    known = set()
    for path in (ROOT / "results").glob("*/report.json"):
        numbers(json.loads(path.read_text()), known)
    spoken = re.findall(r"\d+\.\d+", re.sub(r"`[^`]*`|\([^)]*\)", "", (ROOT / "results" / "FINDINGS.md").read_text()))
    assert len(spoken) > 20 and set(spoken) <= known, sorted(set(spoken) - known)


def test_overview_is_of_the_committed_reports(tmp_path):
    for path in (ROOT / "results").glob("*/report.json"):
        (tmp_path / path.parent.name).mkdir()
        shutil.copy(path, tmp_path / path.parent.name)
    assert write_overview(tmp_path).read_text() == (ROOT / "results" / "REPORT.md").read_text(), \
        "run `python -m common.report results` and commit"


def test_settings_are_those_that_the_tuning_chose():
    rows = json.loads((ROOT / "results" / "cifar100-mini-tuning" / "tuning.json").read_text())["rows"]
    for budget, chosen in studies()["cifar100-mini"].settings.items():
        tried = [row for row in rows if row["budget"] == budget]
        if all(row["accuracy"] is not None for row in tried):
            best = max(tried, key=lambda row: row["accuracy"])
            assert chosen == (best["lr"], best["weight_decay"]), f"budget {budget}"


def test_every_path_the_readme_links_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
