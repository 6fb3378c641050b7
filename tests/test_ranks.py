"""Several ranks: the same examples and the same update as one process whose batch norm works on the parts, exact resume."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import AT_ONCE, ROOT, SCRIPTS, call_main, parse, rows, run_script, same_weights, wait_for

from common import ranks, resume
from common.data import train_batches
from common.run import Run
from common.step import Step, sgd
from common.tasks import TASKS


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(work, world: int = 2, console: Path | None = None) -> list[int]:
    """Forks `world` ranks that each call work(); returns their process ids."""
    port, processes = free_port(), []
    for rank in range(world):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                               "MASTER_PORT": str(port)}
                if console:
                    sys.stdout = sys.stderr = open(console / f"rank{rank}.txt", "w", buffering=1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if rank:
                    def forbidden(one, other):
                        raise AssertionError(f"rank {os.environ['RANK']} writes {other}")
                    os.replace = forbidden                    # every file comes by it, and only rank 0 writes
                work()
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
            except Exception:                                 # os._exit would swallow it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        processes.append(process)
    return processes


def end(processes: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def begun(results: Path):
    """A run in float64 on batches of 32."""
    args = parse("baselines/scratch", "--results", results, "--no-amp", "--epochs", 1, "--seed", 1)
    run, task = Run(args), TASKS["shapes"]
    run.data = data = task.load(args, run.device)
    return run, task, data, task.build(args, data).double()


def test_three_steps_of_two_ranks_equal_one_process_with_batch_norm_on_the_halves(tmp_path):
    def train():
        run, task, data, model = begun(tmp_path / "two")

        def plain(model, batch):
            output = model(batch.image.double())
            return task.loss(output, batch.target), task.stats(output, batch.target)

        step = Step(run, model, sgd(model, run.args))
        for _, (_, batch) in zip(range(3), train_batches(data.train, run, 1), strict=False):
            assert len(batch.index) == 16
            step(batch, plain, lr=0.1)
        torch.save([model.state_dict(), step.table("loss"), run.examples], tmp_path / f"rank{ranks.rank()}.pt")

    assert end(start(train)) == [0, 0]
    run, task, data, model = begun(tmp_path / "one")
    optimizer, loss_table = sgd(model, run.args), torch.full((data.examples,), torch.nan)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _, (_, batch) in zip(range(3), train_batches(data.train, run, 1), strict=False):
        halves = [deepcopy(model) for _ in range(2)]
        for half, at in zip(halves, (slice(0, 16), slice(16, 32)), strict=True):
            loss = task.loss(half(batch.image[at].double()), batch.target[at])
            loss.mean().backward()
            loss_table[batch.index[at]] = loss.detach().float()
        for p, one, two in zip(model.parameters(), *(half.parameters() for half in halves), strict=True):
            p.grad = (one.grad + two.grad) / 2
        optimizer.step()
        for mine, one, two in zip(model.buffers(), *(half.buffers() for half in halves), strict=True):
            mine.copy_((one + two) / 2)
    for rank in (0, 1):
        weights, table, examples = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert examples == 96 and torch.equal(table.isnan(), loss_table.isnan())
        torch.testing.assert_close(table, loss_table, rtol=1e-6, atol=1e-6, equal_nan=True)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_ranks_leave_what_one_process_leaves(script, reuse, tmp_path):
    epochs = 2 if script in ("baselines/lawa", "methods/infobatch_kd", "methods/rho_loss", "methods/born_again") else 0.6
    argv = ["--epochs", epochs, "--seed", 1, *AT_ONCE.get(script, []), *reuse(script)]
    argv += ["--term", "dkpp"] if "born" in script else []
    alone = run_script(script, *argv, "--results", tmp_path / "one")
    codes = end(start(lambda: call_main(script, *argv, "--results", tmp_path / "two"), console=tmp_path))
    assert codes == [0, 0], (tmp_path / "rank0.txt").read_text() + (tmp_path / "rank1.txt").read_text()
    assert (tmp_path / "rank1.txt").read_text() == ""         # only rank 0 says anything
    folder = tmp_path / "two" / alone.relative_to(tmp_path / "one")
    one, two = (json.loads((f / "summary.json").read_text()) for f in (alone, folder))
    assert (one["steps"], one["examples"]) == (two["steps"], two["examples"])
    assert one["flops"]["training"] == two["flops"]["training"] or script == "methods/similarity_kd"    # pairs within a rank
    assert {path.name for path in alone.iterdir()} == {path.name for path in folder.iterdir()}
    if script != "methods/rho_loss":                          # what it keeps depends on the weights
        with np.load(alone / "examples.npz") as first, np.load(folder / "examples.npz") as second:
            assert np.array_equal(np.isnan(first["loss"][0]), np.isnan(second["loss"][0]))


def test_ranks_resume_exactly_after_a_kill_and_after_a_signal(past, tmp_path):
    argv = ["--epochs", 4, "--seed", 1, "--past", past]

    def train(results):
        return lambda: call_main("methods/infobatch", *argv, "--results", tmp_path / results)

    assert end(start(train("calm"))) == [0, 0]
    calm = next((tmp_path / "calm").rglob("summary.json")).parent
    folder = tmp_path / "killed" / calm.relative_to(tmp_path / "calm")

    def killed():
        def die(run, next_epoch):
            if len(run.rows) == 3:                            # epoch 2's row is written, last.pt is epoch 1's
                os.kill(os.getpid(), signal.SIGKILL)
            save(run, next_epoch)

        save, resume.save = resume.save, die                  # in this child
        train("killed")()

    assert end(start(killed)) == [-signal.SIGKILL] * 2 and len(rows(folder)) == 3
    assert end(start(train("killed"))) == [0, 0]
    assert same_weights(calm, folder) and rows(calm) == rows(folder)

    def signalled():                                          # one rank alone is told to stop
        count = Run.count

        def count_and_ask(run, *what):
            count(run, *what)
            if run.steps == 13 and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        Run.count = count_and_ask                             # in this child
        train("signalled")()

    assert end(start(signalled, console=tmp_path)) == [143, 143]
    assert "stopped by SIGTERM after 20 steps" in (tmp_path / "rank0.txt").read_text()
    assert not (tmp_path / "rank1.txt").read_text()
    assert end(start(train("signalled"))) == [0, 0]
    folder = tmp_path / "signalled" / calm.relative_to(tmp_path / "calm")
    assert same_weights(calm, folder) and rows(calm) == rows(folder)
    with pytest.raises(SystemExit) as finished:               # alone, on what two ranks have finished
        train("killed")()
    assert finished.value.code == 0


def test_another_number_of_ranks_is_refused_and_a_lost_rank_ends_the_job(tmp_path):
    def train():
        call_main("baselines/scratch", "--epochs", 30, "--seed", 1, "--results", tmp_path)

    processes = start(train, console=tmp_path)
    wait_for(lambda: any(len(p.read_text().splitlines()) >= 2 for p in tmp_path.rglob("metrics.jsonl")))
    os.kill(processes[1], signal.SIGKILL)
    assert end(processes) == [1, -signal.SIGKILL]
    text = (tmp_path / "rank0.txt").read_text()
    assert "another rank of this job is gone" in text and "Traceback" not in text
    with pytest.raises(SystemExit, match="was begun with ranks 2, here it is 1"):
        train()


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path):
    def train():
        call_main("baselines/scratch", "--epochs", 1, "--batch-size", 31, "--results", tmp_path)
    assert end(start(train, console=tmp_path)) == [1, 1]
    assert "--batch-size 31 cannot be shared equally by 2 ranks" in (tmp_path / "rank0.txt").read_text()


def test_two_torchrun_nodes_on_loopback(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--master-addr", "127.0.0.1", "--master-port", str(port)]
    script = [str(ROOT / "baselines/scratch.py"), "--epochs", "0.2", "--results", str(tmp_path)]
    nodes = [subprocess.Popen([*command, "--node-rank", str(node), *script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) for node in (0, 1)]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    summary = json.loads(next(tmp_path.rglob("summary.json")).read_text())
    assert summary["steps"] == 12 and summary["examples"] == 12 * 32            # of 2,000 images
    assert "test accuracy" in said[0] and "test accuracy" not in said[1]


def test_alone_nothing_changes():
    assert not dist.is_initialized() and (ranks.world(), ranks.rank()) == (1, 0)
    table = torch.tensor([1.0, torch.nan])
    assert ranks.merged(table) is table and torch.equal(ranks.own(table)[:1], table[:1]) and ranks.everyone(table) is table
    begin = time.monotonic()
    ranks.wait()
    assert time.monotonic() - begin < 1 and ranks.largest(3.0) == 3.0
