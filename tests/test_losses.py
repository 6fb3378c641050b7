"""What each script trains on, at settings that are not neutral, against its formula by hand in what it records."""
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SCRIPTS, call_main, run_script

from common.step import Step
from methods import attention_transfer


def mixed(args, parts, progress):
    return (1 - args.alpha) * parts["loss"] + args.alpha * parts["kd"]


def decoupled(args, parts, progress):
    """The terms grow over the first 20 of 240 epochs."""
    return parts["loss"] + min(progress * 240 / 20, 1) * (args.alpha * parts["kd_label"] + args.beta * parts["kd_others"])


def fading(args, parts, progress):
    return mixed(SimpleNamespace(alpha=0.9 * (1 - 2 * progress)), parts, progress) if progress < 0.5 else parts["loss"]


# script -> (arguments, formula in its arguments, recorded parts [K] each and progress (0..1))
FORMULAS = {
    **{f"methods/{name}": ([], mixed) for name in ("kd", "cached_kd", "ensemble_distill", "checkpoint_ensemble")},
    **{f"methods/{name}": (["--share", 1], mixed) for name in ("early_checkpoint_kd", "shrink_perturb_kd", "infobatch_kd")},
    "methods/partial_kd": (["--share", 1, "--anneal", "--until", 0.5], fading),
    "methods/dkd": ([], decoupled),
    "methods/curriculum_dkd": (["--until", 1], decoupled),
    "methods/born_again": (["--hard", 0.3, "--alpha", 0.6], lambda args, parts, _: 0.3 * parts["loss"] + 0.6 * parts["kd"]),
    "methods/attention_transfer": ([], lambda args, parts, _: parts["loss"] + 1000 * parts["at"]),
    "methods/similarity_kd": ([], lambda args, parts, _: parts["loss"] + 3000 * parts["sp"]),
}


def test_every_script_with_a_term_of_its_own_has_a_formula():
    with_one = {script for script in SCRIPTS if re.search(r'\{"(kd|at|sp|kd_label)"|distil_from',
                                                          (ROOT / f"{script}.py").read_text())}
    assert set(FORMULAS) == with_one


@pytest.mark.parametrize("script", FORMULAS)
def test_what_is_trained_on_is_the_formula_of_what_is_recorded(script, reuse, tmp_path, monkeypatch):
    more, formula = FORMULAS[script]
    taken, update = [], Step._update

    def seen(step, *given):
        found = update(step, *given)
        taken.append((step.run.steps / 10, found[0], found[2]))
        return found

    monkeypatch.setattr(Step, "_update", seen)
    args = call_main(script, "--epochs", 1, "--seed", 1, *more, *reuse(script), "--results", tmp_path)
    assert len(taken) >= 5
    for progress, loss, parts in taken:
        torch.testing.assert_close(loss, formula(args, parts, progress).float(), rtol=1e-4, atol=1e-4)


def test_attention_is_compared_at_every_stage(past, tmp_path, monkeypatch):
    asked, real = set(), attention_transfer.difference
    monkeypatch.setattr(attention_transfer, "difference",
                        lambda mine, theirs: asked.add(tuple(mine.shape[1:])) or real(mine, theirs))
    run_script("methods/attention_transfer", "--epochs", 0.2, "--past", past, "--results", tmp_path)
    assert asked == {(16, 32, 32), (32, 16, 16), (64, 8, 8)}


@pytest.mark.parametrize("script", ["methods/infobatch", "methods/infobatch_kd"])
def test_what_infobatch_keeps_of_the_easy_weighs_more_in_its_batches(script, past, tmp_path, monkeypatch):
    weights, call = [], Step.__call__

    def seen(step, batch, *given, **named):
        weights.append(batch.weight)
        return call(step, batch, *given, **named)

    monkeypatch.setattr(Step, "__call__", seen)
    call_main(script, "--epochs", 2, "--seed", 1, "--past", past, "--results", tmp_path)
    assert set(torch.cat(weights[:5]).unique().tolist()) == {1.0, 2.0}
