"""What scratch, and what begins with past weights, were tuned with on held-out examples, and what turned out best."""
from functools import partial

from common.planparts import Runs, Study

# Best of cifar100-mini-tuning.
MINI = {0.25: (0.8, 2e-4), 0.5: (0.8, 5e-4), 1: (0.8, 2e-4), 2: (0.8, 2e-4)}
BETWEEN = MINI | {0.375: (0.8, 2e-4), 0.75: (0.8, 2e-4)}      # not tuned there: what most of them chose
# Best of grow-mini-tuning; and for the past runs the best of those at budget 1 that memorized (train accuracy 95 % or more).
GROW = {0.25: (0.2, 5e-4), 0.375: (0.2, 5e-4), 0.5: (0.4, 5e-4), 0.75: (0.4, 1e-3), 1: (0.4, 2e-3), 2: (0.8, 2e-3)}
MEMORIZE = ("--lr", "0.4", "--weight-decay", "0.0005")
# Best of grow-mini-reuse-tuning, whose budget is 1/2.
RELOADED = {"baselines/warm_start": (0.4, 2e-3), "methods/shrink_perturb": (0.2, 2e-3)}
# With crop and flip: best of grow-mini-augment-tuning; of grow-mini-augment-reuse-tuning, whose budget is 1/2.
AUGMENTED = dict.fromkeys((0.25, 0.375, 0.5, 0.75, 1, 2), (0.4, 5e-4))
RELOADED_AUGMENTED = {"baselines/warm_start": (0.4, 5e-4), "methods/shrink_perturb": (0.2, 5e-4)}
# Best of segmentation-mini-tuning with batches of 2; 3/4 was not tuned.
SEGMENTATION = dict.fromkeys((0.25, 0.5, 0.75, 1, 2), (0.2, 5e-4))
# Best of detection-mini-tuning with batches of 4; 3/4 was not tuned.
DETECTION = dict.fromkeys((0.25, 0.5, 0.75, 1, 2), (0.1, 2e-3))
# Best of caltech101-mini-tuning with batches of 64.
CALTECH101 = {0.5: (0.4, 5e-4), 0.75: (0.2, 5e-4), 1: (0.2, 2e-3), 2: (0.2, 2e-3)}
# Of the studies, so that what tunes one is of its shape.
NO_VIEWS = ("--augment", "none", "--batch-size", "64")
CROP_FLIP = ("--augment", "crop-flip", "--batch-size", "64")
GROW_SHAPE = {"task": "cifar100", "model": "resnet20", "past_epochs": 40, "epochs": 24, "scenario": "grow",
              "past_options": ("--subset", "share:0.1", *NO_VIEWS, *MEMORIZE)}
GROW_CROP_FLIP = GROW_SHAPE | {"past_options": ("--subset", "share:0.1", *CROP_FLIP)}
CALTECH = {"task": "caltech101", "model": "resnet20", "past_epochs": 30}
TRUNKS = {"trunks": (8, ("--task", "cifar100", "--image-size", "32", "--batch-size", "128"))}
TRUNK = {"options": ("--part", "trunk"), "tag": "trunk", "past": "trunks"}


def settings(lr: float, decay: float) -> tuple[str, ...]:
    return "--lr", f"{lr:g}", "--weight-decay", f"{decay:.7f}".rstrip("0")


def tuning(budget: float, rates: tuple[float, ...], decays: tuple[float, ...], holdout: float = 0.1,
           script: str = "baselines/scratch", options: tuple[str, ...] = (), seeds: tuple[int, ...] = (0,),
           **more) -> tuple[Runs, ...]:
    return tuple(Runs(script, (budget,), seeds, (*options, "--holdout", f"{holdout:g}", *settings(lr, decay)), **more)
                 for lr in rates for decay in decays)


def tunings() -> dict[str, Study]:
    """The tuning studies of classifiers, by name; those of pixels and boxes stand beside what uses them."""
    quarter = (0.25, 0.5, 1)
    # crosses: learning rates at one weight decay, weight decays at one learning rate
    search = (*(runs for budget in quarter for runs in (
                  *tuning(budget, (0.05, 0.1, 0.2, 0.4), (5e-4,)), *tuning(budget, (0.1,), (1e-4, 2e-3)))),
              *tuning(2, (0.05, 0.1, 0.2), (5e-4,)), *tuning(2, (0.1,), (2e-3,)),
              # beyond what turned out to be the edge: at 12 epochs the highest rate was the best, and so was the higher decay
              *(runs for budget in (0.5, 1) for runs in (*tuning(budget, (0.8,), (5e-4,)), *tuning(budget, (0.4,), (2e-3,)))),
              *tuning(2, (0.4,), (5e-4, 2e-3)),
              # likewise at 24 epochs; and the budgets between, since the best decay is not the same on either side of them
              *tuning(1, (0.2, 0.8), (2e-3,)), *tuning(1, (0.4,), (5e-3,)), *tuning(0.5, (0.4,), (1e-3,)),
              *tuning(0.375, (0.2, 0.4), (5e-4,)), *tuning(0.75, (0.4,), (5e-4, 1e-3, 2e-3)),
              *tuning(2, (0.8,), (2e-3,)), *tuning(2, (0.4,), (5e-3,)),
              # on pixels and boxes, smaller batches were better by far; what is best with 64, and half of that rate
              *(runs for budget, decay in ((0.5, 5e-4), (1, 2e-3)) for runs in tuning(
                  budget, (0.2, 0.4), (decay,), options=("--batch-size", "32"))))
    # with crop and flip about what was best without, and to either side of it
    def about(budget, script="baselines/scratch"):
        return (*tuning(budget, (0.1, 0.2, 0.4, 0.8), (5e-4,), script=script), *tuning(budget, (0.4,), (2e-3,), script=script))

    # at 12 epochs the highest rate was the best; and no decay below had been tried beside what was the best
    def beyond(script="baselines/scratch"):
        return (*tuning(0.5, (1.6,), (5e-4,), script=script), *tuning(0.5, (0.8,), (2e-3,), script=script))

    augmented = (*(runs for budget in quarter for runs in about(budget)),
                 *tuning(0.375, (0.2, 0.4), (5e-4,)), *tuning(0.75, (0.4,), (5e-4, 2e-3)), *tuning(2, (0.4,), (5e-4, 2e-3)),
                 *beyond(), *tuning(0.5, (0.8,), (1e-4,)), *tuning(0.25, (0.4,), (1e-4,)), *tuning(1, (0.4,), (1e-4,)),
                 # what one seed had chosen at 12 epochs turned out to be unstable
                 *tuning(0.5, (0.4, 0.8), (5e-4,), seeds=(1, 2)), *tuning(0.5, (0.4,), (2e-3,), seeds=(1, 2)))
    # what begins with past weights, with settings of its own; a past run of these kept examples alone
    reloaded = tuple(runs for script in RELOADED for runs in (
        *tuning(0.5, (0.4,), (5e-4, 1e-3, 2e-3, 5e-3), script=script), *tuning(0.5, (0.2, 0.8), (2e-3,), script=script)))
    usual = partial(tuning, options=("--batch-size", "128"))
    return {
        "cifar100-mini-tuning": Study("cifar100", "resnet8", 8, tuning=True, runs=(
            *usual(0.25, (0.1, 0.2, 0.4, 0.8), (2e-4, 1e-3)), *usual(0.25, (1.6,), (2e-4,)), *usual(0.25, (0.8,), (5e-5,)),
            *(runs for budget in (0.5, 1) for runs in (
                *usual(budget, (0.4, 0.8, 1.6), (2e-4,)), *usual(budget, (0.8,), (5e-5, 5e-4)))),
            *usual(2, (0.4, 0.8, 1.6), (2e-4,)), *usual(2, (0.8,), (5e-5, 5e-4)),
            # on pixels and boxes, smaller batches were better by far
            *tuning(0.5, (0.4,), (5e-4,), options=("--batch-size", "64")))),
        "grow-mini-tuning": Study(**GROW_SHAPE, tuning=True, options=("--subset", "share:0.2", *NO_VIEWS), runs=search),
        "grow-mini-augment-tuning": Study(
            **GROW_SHAPE, tuning=True, runs=augmented, options=("--subset", "share:0.2", *CROP_FLIP)),
        "grow-mini-reuse-tuning": Study(
            **GROW_SHAPE | {"past_options": (*GROW_SHAPE["past_options"], "--holdout", "0.1")}, past_seeds=(100,), tuning=True,
            options=("--subset", "share:0.2", *NO_VIEWS), runs=reloaded),
        # as many pairs as scratch has at that budget with crop and flip
        "grow-mini-augment-reuse-tuning": Study(
            **GROW_SHAPE, past_of="grow-mini-reuse-tuning", past_seeds=(100,), tuning=True,
            options=("--subset", "share:0.2", *CROP_FLIP),
            runs=tuple(runs for script, rate in (("baselines/warm_start", 0.4), ("methods/shrink_perturb", 0.2)) for runs in (
                *about(0.5, script), *beyond(script), *tuning(0.5, (rate,), (1e-4,), script=script)))),
        # the same eight pairs
        "grow-mini-crop-flip-reuse-tuning": Study(
            **GROW_CROP_FLIP | {"past_options": (*GROW_CROP_FLIP["past_options"], *settings(*AUGMENTED[1]), "--holdout", "0.1")},
            past_seeds=(100,), tuning=True, options=("--subset", "share:0.2", *CROP_FLIP),
            runs=(*about(0.5, "baselines/warm_start"), *beyond("baselines/warm_start"),
                  *tuning(0.5, (0.4,), (1e-4,), script="baselines/warm_start"))),
        # a fifth is held out, since a tenth would be 303 images
        "caltech101-mini-tuning": Study(**CALTECH, tuning=True, runs=(
            *(runs for budget in (0.5, 1) for runs in tuning(budget, (0.05, 0.1, 0.2, 0.4), (5e-4,), 0.2)),
            *(runs for budget in (0.75, 2) for runs in tuning(budget, (0.1, 0.2), (5e-4,), 0.2)),
            *(runs for budget in (0.5, 0.75, 1, 2) for runs in tuning(budget, (0.1,), (2e-3,), 0.2)),
            # on pixels and boxes, smaller batches were better by far
            *(runs for budget in (0.5, 1) for size, rates in (("32", (0.05, 0.1)), ("16", (0.025, 0.05))) for runs in tuning(
                budget, rates, (5e-4,), 0.2, options=("--batch-size", size))),
            # they were not; the next rate, the higher decay beside the better rate, and what one seed cannot tell apart
            *(runs for budget in (0.5, 1, 2) for runs in tuning(budget, (0.2,), (2e-3,), 0.2)),
            *tuning(0.75, (0.1, 0.2), (5e-4,), 0.2, seeds=(1, 2)),
            *(runs for budget in (0.5, 1) for runs in tuning(budget, (0.2, 0.4), (5e-4,), 0.2, seeds=(1, 2))),
            *tuning(1, (0.05,), (5e-4,), 0.2, options=("--batch-size", "16"), seeds=(1, 2)),
            *tuning(1, (0.2,), (2e-3,), 0.2, seeds=(1, 2)),         # best by one
            # beyond the corner that was the best of both, after all studies had been made with it
            *(runs for budget in (1, 2) for rate, decay in ((0.2, 5e-3), (0.4, 2e-3), (0.4, 5e-3)) for runs in tuning(
                budget, (rate,), (decay,), 0.2)))),
        # what begins with past weights, of the same task and of another, with settings of its own
        "caltech101-mini-reuse-tuning": Study(
            **CALTECH, settings=CALTECH101, past_options=("--holdout", "0.2"), past_seeds=(100,), others=TRUNKS, tuning=True,
            runs=tuple(
                runs for more in ({}, TRUNK) for runs in (
                    *tuning(0.5, (0.05, 0.1, 0.2, 0.4), (5e-4,), 0.2, "baselines/warm_start", **more),
                    *tuning(0.5, (0.1,), (2e-3,), 0.2, "baselines/warm_start", **more),
                    # the highest rate was the best of both
                    *tuning(0.5, (0.8,), (5e-4,), 0.2, "baselines/warm_start", **more))))}
