"""The plans that show every script at work on rendered data, in minutes; they recommend nothing."""
from common.planparts import Runs, Study, every_script, needs, works_on

# scenario -> arguments of its past runs and of its new ones, and the scripts that refuse there (README's table of scripts)
SCENARIOS = {
    "grow": (("--subset", "half"), ("--parts", "half"), {"methods/rho_loss"}),
    "classes": (("--subset", "classes:16"), ("--parts", "classes:16"),
                {"methods/rho_loss", "methods/dkd", "methods/born_again", "methods/curriculum_dkd"}),
    "shift": (("--subset", "members:3/4"), ("--labels", "coarse", "--parts", "members:3/4"), {"methods/rho_loss"}),
    "model": (("--model", "resnet8x0.5"), (), {
        "baselines/warm_start", "methods/shrink_perturb", "methods/dash", "methods/early_checkpoint", "methods/weight_average",
        "methods/layer_freeze", "methods/loss_replay", "methods/shrink_perturb_kd", "methods/early_checkpoint_kd"}),
}


def demo_of(scenario: str) -> Study:
    """Every script that works there, once, in a few minutes."""
    past, new, refuse = SCENARIOS[scenario]
    runs = tuple(Runs(script, (0.5,), (0,)) for script in every_script() if script not in refuse)
    return Study("shapes", "resnet8", 3, scenario=scenario, recommend=False, past_options=past, options=new,
                 past_seeds=(100, 101), runs=runs)


def demo_dense(task: str, predicts: str) -> Study:
    """Every script that works on that task, once, in a few minutes."""
    runs = tuple(Runs(script, (0.5,), (0,)) for script in every_script() if works_on(script, predicts))
    return Study(task, "resnet8x0.5", 3, recommend=False, past_seeds=(100, 101), runs=runs)


def demo_sequences() -> dict[str, Study]:
    """Chains, streams and searches with every script that reuses one run of any kind, in a few minutes."""
    scripts = [script for script in every_script() if needs(script) == "past"]
    scratch, longer = "baselines/scratch", 0.35               # more than one epoch: a run of less keeps no checkpoint
    return {"demo-generations": Study(
                "shapes", "resnet8x0.5", 3, scenario="generations", recommend=False, generations=5, past_seeds=(100,),
                past_options=("--subset", "half"), options=("--subset", "half"),
                runs=(Runs(scratch, (longer, 1), (0,)), *(Runs(script, (longer,), (0,)) for script in scripts))),
            "demo-stream": Study(
                "shapes", "resnet8x0.5", 3, scenario="stream", recommend=False, portions=5,
                runs=(Runs(scratch, (longer, 1), (0,)), *(Runs(script, (longer,), (0,)) for script in scripts))),
            "demo-tuning": Study(
                "shapes", "resnet8x0.5", 3, scenario="tuning", recommend=False, trials=3,
                runs=(Runs(scratch, (0.5, 1), (0,)), *(Runs(script, (0.5,), (0,)) for script in scripts)))}


def demos() -> dict[str, Study]:
    """Every script on rendered data, in minutes."""
    return {
        "demo": Study("shapes", "resnet8", 3, recommend=False, runs=tuple(
            Runs(script, (0.5, 1), (0, 1, 2) if script == "baselines/scratch" else (0, 1)) for script in every_script())),
        **{f"demo-{scenario}": demo_of(scenario) for scenario in SCENARIOS},
        "demo-segmentation": demo_dense("shapes-seg", "pixels"),
        "demo-detection": demo_dense("shapes-det", "boxes"),
        **demo_sequences()}
