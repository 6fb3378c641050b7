"""Small data, one thread, and scripts run in process: importing torch costs seconds."""
import os
import sys

if "--gpu" in sys.argv:
    os.environ["TESTS_MAY_USE_GPU"] = "1"                     # pytest-xdist's workers inherit this, not the arguments
if "TESTS_MAY_USE_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""                   # tests fork, and CUDA does not survive that

import importlib
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from common import shapes
from common.amp import autocast
from common.planparts import needs
from common.run import Run
from common.splits import CENTER
from common.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(f"{folder}/{path.stem}" for folder in ("baselines", "methods") for path in (ROOT / folder).glob("*.py"))


# without these, ten steps are too few for the method to do anything
AT_ONCE = {"baselines/ema": ["--horizon", 0.5], "methods/layer_freeze": ["--first", 0], "methods/schedule_reuse": ["--fall", 0.5],
           "methods/curriculum": ["--full", 1]}


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="leave GPUs visible, for tests/test_gpu.py alone (default: hidden)")


@pytest.fixture(autouse=True, scope="session")
def small():
    """A tenth of `shapes`, and threads that do not fight over two cores."""
    shapes.TRAIN_SIZE, shapes.TEST_SIZE = 320, 100
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def handlers():
    """Runs and queues take signals over, and a test that ends one in the middle must not take Ctrl-C from the others."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def parse(script: str, *argv) -> object:
    """The script's arguments, as its __main__ line parses them."""
    return importlib.import_module(script.replace("/", ".")).parser().parse_args([str(a) for a in argv])


def call_main(script: str, *argv) -> object:
    """Runs `python SCRIPT.py ARGV` in process; returns its arguments."""
    args = parse(script, *argv)
    importlib.import_module(script.replace("/", ".")).main(args)
    return args


def run_script(script: str, *argv) -> Path:
    """Runs `python SCRIPT.py ARGV` in process; returns the run's folder."""
    args = call_main(script, *argv)
    found = [path.parent for path in Path(args.results).rglob("config.json")
             if json.loads(path.read_text())["args"]["seed"] == args.seed and f"/{args.method}" in str(path)]
    return max(found, key=lambda folder: (folder / "config.json").stat().st_mtime_ns)


def fork_script(script: str, *argv, console: Path | None = None, killed_after: int | None = None) -> int:
    """Starts it in a child process, which SIGKILL ends within the epoch after so many rows; returns the process id."""
    process = os.fork()
    if process == 0:
        code, count = 1, Run.count

        def count_and_die(run, *what):
            count(run, *what)
            if len(run.rows) >= killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            Run.count = count_and_die if killed_after else count
            if console:
                sys.stdout = sys.stderr = open(console, "w")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            call_main(script, *argv)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def past(tmp_path_factory, small) -> Path:
    """Three past runs of two epochs."""
    folder = tmp_path_factory.mktemp("past")
    for seed in (100, 101, 102):
        run_script("baselines/scratch", "--epochs", 2, "--seed", seed, "--results", folder)
    return folder


@pytest.fixture(scope="session")
def folds(tmp_path_factory, small) -> Path:
    """Two past runs of two epochs, each without another half of the examples."""
    folder = tmp_path_factory.mktemp("folds")
    for fold in (1, 2):
        run_script("baselines/scratch", "--epochs", 2, "--seed", 99 + fold, "--results", folder, "--subset", f"not:{fold}/2")
    return folder


@pytest.fixture(scope="session")
def reuse(past, folds):
    """script -> its --past arguments."""
    return lambda script: {"": [], "past": ["--past", past], "folds": ["--past", folds]}[needs(script)]


def needs_past(script: str) -> bool:
    return bool(needs(script))


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, two = (torch.load(folder / "final.pt", weights_only=True) for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def score_of(folder: Path, *argv) -> list[float]:
    """Share of right test images of `shapes` and mean loss under a run's final.pt, without what the run itself evaluates by."""
    args, device = parse("baselines/scratch", "--task", "shapes", *argv), torch.device("cpu")
    data = TASKS["shapes"].load(args, device)
    split, model = data.final or data.test, TASKS["shapes"].build(args, data)
    model.load_state_dict(torch.load(folder / "final.pt", weights_only=True))
    with torch.no_grad(), autocast(split.amp, device):
        output = model.eval()(split.images(split.index, torch.full_like(split.index, CENTER))).float()
    target = split.target[split.index]
    return [(output.argmax(1) == target).float().mean().item(), cross_entropy(output, target).item()]


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what no two runs share: seconds."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")} for row in found]
