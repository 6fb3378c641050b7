"""The fixed plans of results/, so that nobody chooses a size that suits a result; written down by common/planning.py."""
from common.demos import demos
from common.planparts import Runs, Study, every_script, needs
from common.tunings import (
    AUGMENTED,
    BETWEEN,
    CALTECH,
    CALTECH101,
    CROP_FLIP,
    DETECTION,
    GROW,
    GROW_CROP_FLIP,
    GROW_SHAPE,
    MINI,
    NO_VIEWS,
    RELOADED,
    RELOADED_AUGMENTED,
    SEGMENTATION,
    TRUNK,
    TRUNKS,
    settings,
    tuning,
    tunings,
)

THREE, FIVE, FRESH = (0, 1, 2), (0, 1, 2, 3, 4), (10, 11, 12, 13, 14)
SAMPLE = {"options": ("--sample",), "tag": "sample"}
EARLY = ("--share", "1", "--until", "0.5")
# what a script can do besides its defaults
VARIANTS = (
    ("methods/partial_kd", "early", EARLY),
    ("methods/partial_kd", "annealed", (*EARLY, "--anneal")),
    ("methods/dkd", "early", ("--until", "0.5")),
    ("methods/cached_kd", "control", ("--alpha", "0")),
    ("methods/born_again", "cwtm", ("--term", "cwtm")),
    ("methods/born_again", "dkpp", ("--term", "dkpp")),
    ("methods/weight_average", "match", ("--match",)))


def screening(besides: tuple[Runs, ...], budget: float, seeds: tuple[int, ...]) -> tuple[Runs, ...]:
    """Every script that is not among `besides`, then the variants, at one budget; those that need folds come before these."""
    others = [script for script in every_script() if script not in {runs.script for runs in besides}]
    return (*(Runs(script, (budget,), seeds) for script in sorted(others, key=lambda script: needs(script) == "folds")),
            *(Runs(script, (budget,), seeds, options, tag) for script, tag, options in VARIANTS))


def batches_of(size: int, budget: float, rates: tuple[float, ...], decays: tuple[float, ...] = (5e-4,),
               seeds: tuple[int, ...] = (0,)) -> tuple[Runs, ...]:
    """A fifth is held out, since a tenth of the dense tasks' examples would be 30 images."""
    return tuning(budget, rates, decays, 0.2, options=("--batch-size", str(size)), seeds=seeds)


def dense_minis(name: str, task: str, rates: tuple[float, ...], settings: dict[float, tuple[float, float]],
                beyond: tuple[Runs, ...] = (), old: str = "half") -> dict[str, Study]:
    """The three studies of a task that predicts pixels or boxes: reuse where nothing is new, where the data doubled, tuning.

    rates: four learning rates to try; weight decay is tried at the third of them, a cross and not a grid. At budget 2, where a
    run costs most, the three larger ones alone, at one weight decay. All with batches of 16, which turned out to be too large.
    settings: what the tuning chose, budget -> learning rate, weight decay.
    beyond: what the tuning tried then, where its choice had lain at an edge or left a batch size untried.
    old: --subset of the past runs where the data doubled.

    Distillation has temperature 1, as in Liu et al. 2019, arXiv:1903.04197, whose term has none.
    """
    shape = {"task": task, "model": "resnet8", "past_epochs": 30}
    half, one = (0.5,), ("--temperature", "1")
    cross = [runs for budget in (0.5, 1) for runs in (*batches_of(16, budget, rates),
                                                      *batches_of(16, budget, rates[2:3], (1e-4, 2e-3)))]
    return {
        f"{name}-mini-tuning": Study(**shape, tuning=True, runs=(*cross, *batches_of(16, 2, rates[1:]), *beyond)),
        f"{name}-mini": Study(**shape, settings=settings, runs=(
            Runs("baselines/scratch", (0.25, 0.5, 0.75, 1, 2), THREE), Runs("methods/kd", half, THREE, one),
            Runs("methods/ensemble_distill", half, THREE, ("--sample", *one), "sample"),
            Runs("baselines/warm_start", half, THREE), Runs("methods/loss_replay", half, THREE),
            Runs("methods/partial_kd", half, THREE, one), Runs("methods/partial_kd", half, THREE, (*EARLY, *one), "early"),
            # labels with as much weight as the teacher; features instead of outputs, a mean over 20 times as many pixels as
            # CIFAR's, hence beta: planned after detection's other results
            Runs("methods/kd", half, THREE, ("--alpha", "0.5", *one), "even"),
            Runs("methods/attention_transfer", half, THREE, ("--beta", "20000")))),
        f"{name}-mini-grow": Study(
            **shape, settings=settings, scenario="grow", past_seeds=(100, 101, 102), past_options=("--subset", old),
            options=("--parts", old), runs=(
                Runs("baselines/scratch", (0.25, 0.5, 0.75, 1), THREE), Runs("baselines/warm_start", half, THREE),
                Runs("methods/shrink_perturb", half, THREE)))}


def studies() -> dict[str, Study]:
    """The plans of results/, by name."""
    def full(script):
        budgets = (0.125, 0.25, 0.5, 1, 2) if script == "baselines/scratch" else (0.125, 0.25, 0.5, 1)
        return Runs(script, budgets, tuple(range(5)))

    quarter = (0.25, 0.5, 1)
    # scratch also where the cost of a budget with a teacher lies between its own, so that less is left to reading between points
    scratch = (0.25, 0.375, 0.5, 0.75, 1, 2)
    mini = (
        Runs("baselines/scratch", scratch, THREE),
        Runs("methods/kd", quarter, THREE),
        Runs("methods/ensemble_distill", quarter, THREE, **SAMPLE),
        Runs("baselines/warm_start", quarter, THREE),
        Runs("methods/loss_replay", quarter, THREE),
        Runs("baselines/label_smoothing", quarter, THREE),
        Runs("baselines/ema", quarter, THREE),
        Runs("methods/ensemble_distill", (0.5, 1), THREE))
    half = (0.25, 0.5)
    return {
        **demos(), **tunings(),
        "cifar100-mini": Study("cifar100", "resnet8", 8, settings=BETWEEN, runs=(*mini, *screening(mini, 0.5, THREE))),
        # what the screening calls strongest, and the strongest that costs nothing, on unseen seeds, one at a time
        "cifar100-mini-fresh": Study(
            "cifar100", "resnet8", 8, settings=BETWEEN, past_of="cifar100-mini", confirms="cifar100-mini", runs=tuple(
            Runs(script, budgets, (seed,), options, tag) for seed in FRESH for script, budgets, options, tag in (
                ("baselines/scratch", scratch, (), ""), ("methods/dkd", quarter, ("--until", "0.5"), "early"),
                ("methods/partial_kd", quarter, EARLY, "early"), ("methods/dkd", quarter, (), ""),
                ("methods/attention_transfer", quarter, (), ""), ("methods/curriculum", quarter, (), ""),
                # added after the results: between 1/2 and 1 its speed-up was read off a curve
                ("methods/dkd", (0.75,), ("--until", "0.5"), "early")))),
        "grow-mini": Study(**GROW_SHAPE, settings=GROW, options=(
                "--subset", "share:0.2", *NO_VIEWS, "--parts", "share:0.1"), runs=(
            Runs("baselines/scratch", scratch, THREE),
            *(Runs(script, half, THREE) for script in (
                "baselines/warm_start", "methods/shrink_perturb", "methods/dash", "methods/early_checkpoint", "methods/kd",
                "methods/partial_kd", "methods/shrink_perturb_kd", "methods/loss_replay")),
            Runs("methods/partial_kd", half, THREE, EARLY, "early"),
            # what reloading ends at where it has as long as scratch; and the strongest of cifar100-mini
            Runs("baselines/warm_start", (1,), THREE), Runs("methods/shrink_perturb", (1,), THREE),
            Runs("methods/dkd", half, THREE, ("--until", "0.5"), "early"),
            Runs("methods/kd", half, THREE, ("--alpha", "0.5"), "even"),       # labels with as much weight as the teacher
            # that row was made where there is no bf16; whether that matters
            Runs("baselines/scratch", (0.25,), THREE, ("--no-amp",), "float32"),
            *(Runs(script, (budget,), THREE, settings(*own), "tuned") for budget in (0.5, 0.75, 0.375)
              for script, own in RELOADED.items()),
            # so that what the better of the two costs can be read on both sides of full accuracy
            Runs("baselines/warm_start", (1,), THREE, settings(*RELOADED["baselines/warm_start"]), "tuned"))),
        # the two that have settings of their own, on unseen seeds, one at a time
        "grow-mini-fresh": Study(
            **GROW_SHAPE, settings=GROW, past_of="grow-mini", confirms="grow-mini", options=(
                "--subset", "share:0.2", *NO_VIEWS, "--parts", "share:0.1"), runs=tuple(runs for seed in FRESH for runs in (
                    Runs("baselines/scratch", (0.25, 0.375, 0.5, 0.75, 1), (seed,)),
                    *(Runs(script, (0.375, 0.5, 0.75, 1), (seed,), settings(*own), "tuned")
                      for script, own in RELOADED.items())))),
        # the same past runs, which memorized without augmentation: new runs with crop and flip see other views than those did
        "grow-mini-augment": Study(
            **GROW_SHAPE, settings=AUGMENTED, past_of="grow-mini", options=(
                "--subset", "share:0.2", *CROP_FLIP, "--parts", "share:0.1"), runs=(
                Runs("baselines/scratch", scratch[:-1], THREE),
                # warm_start's own turned out to be scratch's: the same runs, of which those at 1/2 were made under its tag
                *(runs for script, own in RELOADED_AUGMENTED.items() for runs in (
                    Runs(script, (0.5,), THREE, settings(*own), "tuned"), Runs(script, quarter, THREE),
                    Runs(script, (0.25, 1), THREE, settings(*own), "tuned"))),
                Runs("baselines/scratch", (2,), THREE))),     # the dearest last
        # what half of the epochs bring, on unseen seeds, one at a time
        "grow-mini-augment-fresh": Study(
            **GROW_SHAPE, settings=AUGMENTED, past_of="grow-mini", confirms="grow-mini-augment", options=(
                "--subset", "share:0.2", *CROP_FLIP, "--parts", "share:0.1"), runs=tuple(
                    runs for seed in FRESH for runs in (
                        Runs("baselines/scratch", (0.25, 0.375, 0.5, 0.75, 1), (seed,)),
                        # 3/4 was added after the results: between 1/2 and 1 the speed-up was read off a curve
                        Runs("baselines/warm_start", (*quarter, 0.75), (seed,),
                             settings(*RELOADED_AUGMENTED["baselines/warm_start"]), "tuned")))),
        # as most people train: past runs with crop and flip, too, and with the settings that scratch has, from which its
        # tuning does not tell the best ones apart
        "grow-mini-crop-flip": Study(
            **GROW_CROP_FLIP, settings=AUGMENTED, scratch_of="grow-mini-augment-fresh", options=(
                "--subset", "share:0.2", *CROP_FLIP, "--parts", "share:0.1"), runs=tuple(runs for seed in FRESH for runs in (
                    Runs("baselines/scratch", (0.25, 0.375, 0.5, 0.75, 1), (seed,)),
                    Runs("baselines/warm_start", (0.25, 0.375, 0.5, 1), (seed,))))),
        "stream-mini": Study("cifar100", "resnet8", 8, scenario="stream", settings=MINI, portions=10, runs=(
            Runs("baselines/scratch", quarter, THREE),        # what one would do, and shorter
            *(Runs(script, half, THREE) for script in ("baselines/warm_start", "methods/shrink_perturb")),
            *(Runs(script, (0.25,), THREE) for script in ("methods/dash", "methods/kd", "methods/loss_replay")))),
        # five searches of each kind, since each draws other settings; a fifth of the data, so that there can be five
        "tuning-mini": Study(
            "cifar100", "resnet8", 16, scenario="tuning", trials=6, holdout=0.2, options=("--subset", "share:0.2"), runs=(
                Runs("baselines/scratch", quarter, FIVE),
                *(Runs(script, (0.5,), FIVE) for script in ("baselines/warm_start", "methods/shrink_perturb")),
                Runs("methods/dkd", (0.375,), FIVE, ("--until", "0.5"), "early"),     # with a teacher, for as much
                # a search of short trials, then one long training, costs what the searches that reuse do
                Runs("baselines/scratch", (1.5,), FIVE))),
        "classes-mini": Study(
            "cifar100", "resnet8", 8, scenario="classes", settings=BETWEEN, past_options=("--subset", "classes:80"),
            options=("--parts", "classes:80"), runs=(
                Runs("baselines/scratch", scratch, THREE),
                *(Runs(script, half, THREE) for script in (
                    "baselines/warm_start", "methods/shrink_perturb", "methods/kd", "methods/partial_kd",
                    "methods/attention_transfer", "methods/infobatch")),
                Runs("methods/partial_kd", half, THREE, EARLY, "early"),
                # labels with as much weight as the teacher, who says nothing of the new classes
                Runs("methods/kd", half, THREE, ("--alpha", "0.5"), "even"))),
        "caltech101-mini": Study(**CALTECH, settings=CALTECH101, others=TRUNKS, runs=(
            Runs("baselines/scratch", (0.5, 0.75, 1, 2), THREE),
            *(Runs(script, (0.5,), THREE) for script in ("baselines/warm_start", "methods/kd", "methods/loss_replay",
                                                         "methods/shrink_perturb")),
            Runs("methods/ensemble_distill", (0.5,), THREE, **SAMPLE),
            Runs("baselines/warm_start", (0.5,), THREE, **TRUNK))),
        # its strongest, and the strongest that trains anew, on unseen seeds, one at a time; trunks also in less than half
        "caltech101-mini-fresh": Study(
            **CALTECH, settings=CALTECH101 | dict.fromkeys((0.125, 0.25), CALTECH101[0.5]), past_of="caltech101-mini",
            others=TRUNKS, confirms="caltech101-mini", runs=tuple(runs for seed in FRESH for runs in (
                Runs("baselines/scratch", (0.5, 0.75, 1), (seed,)),
                Runs("baselines/warm_start", (0.125, 0.25, 0.5), (seed,), **TRUNK),
                Runs("methods/ensemble_distill", (0.5, 1), (seed,), **SAMPLE), Runs("baselines/scratch", (2,), (seed,))))),
        # the highest rate was the best at 15 and 30 epochs, and the higher decay beside the rate below it; 22 batches an epoch
        # turned out to be too few
        **dense_minis("segmentation", "camvid", (0.1, 0.2, 0.4, 0.8), SEGMENTATION, beyond=(
            *(runs for budget in (0.5, 1) for runs in (
                *batches_of(16, budget, (0.8,), (2e-3,)), *batches_of(16, budget, (1.6,)))),
            *batches_of(8, 0.5, (0.4, 0.8)), *batches_of(4, 0.5, (0.2, 0.4)), *batches_of(2, 0.5, (0.1, 0.2, 0.4)),
            *batches_of(8, 1, (0.4,)), *batches_of(4, 1, (0.4,)), *batches_of(2, 1, (0.1, 0.2)),
            *batches_of(2, 1, (0.2,), (2e-3,)), *batches_of(2, 2, (0.1, 0.2)),
            # what one seed may not tell apart, and 1/4, which is not between what was tuned
            *batches_of(2, 0.5, (0.1, 0.2), seeds=(1, 2)), *batches_of(2, 0.25, (0.1, 0.2)),
            # the decay below what all budgets chose; --batch-size takes no less than 2
            *batches_of(2, 0.5, (0.2,), (1e-4,))),
            # frames of films in the order of their drives: the new half is not every other frame of what the past runs saw
            old="first:0.5"),
        **dense_minis("detection", "bccd", (0.025, 0.05, 0.1, 0.2), DETECTION, beyond=(
            *batches_of(8, 0.5, (0.05, 0.1), (2e-3,)), *batches_of(4, 0.5, (0.05, 0.1), (2e-3,)),
            *batches_of(2, 0.5, (0.05,), (2e-3,)), *batches_of(4, 1, (0.05, 0.1), (2e-3,)),
            # 4 it is: the weight decay that most budgets chose with 16, the next learning rate, and the longest
            *batches_of(4, 0.5, (0.1,)), *batches_of(4, 0.5, (0.2,), (2e-3,)), *batches_of(4, 1, (0.1,)),
            *batches_of(4, 2, (0.1,), (5e-4, 2e-3)),
            # at 15 epochs the highest rate was the best
            *batches_of(4, 0.5, (0.4,), (2e-3,)), *batches_of(4, 1, (0.2,), (2e-3,)),
            # what one seed cannot tell apart, by three; and 1/4, where the rate that was best at 1/2 had diverged with one
            *batches_of(4, 0.5, (0.05, 0.1, 0.2), (2e-3,), (1, 2)), *batches_of(4, 1, (0.1,), (5e-4, 2e-3), (1, 2)),
            *batches_of(4, 0.25, (0.05, 0.1, 0.2), (2e-3,), THREE))),
        "cifar100-short": Study("cifar100", "resnet56", 40, runs=(
            Runs("baselines/scratch", (0.25, 0.5, 1, 2), THREE),
            Runs("methods/kd", half, THREE),
            Runs("methods/ensemble_distill", half, THREE, **SAMPLE),
            *(Runs(script, half, THREE) for script in ("methods/cached_kd", "methods/partial_kd", "methods/loss_replay",
                                                       "methods/infobatch")))),
        "cifar100": Study("cifar100", "resnet56", 200, runs=tuple(map(full, every_script()))),
    }
