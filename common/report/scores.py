"""The benchmark's arithmetic: trade-off curves, intervals, paired differences, speed-ups, cost columns. No files.

A curve is a list of (cost, accuracy) points: one complete run each, cost in any one unit, accuracy as a fraction;
accuracy stands for the score, whichever the task has.
Values of one row are a dict from seed to accuracy. An interval that cannot be known is None, never 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.stats import t as student

Curve = Sequence[tuple[float, float]]
Values = Mapping[int, float]


class Reading(NamedTuple):
    """A cost read off a curve, and how to read it: `cost` is None unless the status has one.

    "reached": exactly there. "at most": the smallest budget is above the target already. "not reached": the largest
    is still below it. "starts there": before the first step. "unknown": there is no curve or no target.
    """

    status: str
    cost: float | None = None


class SpeedUp(NamedTuple):
    """Scratch's cost over the method's at equal accuracy; a status per number, as in `Reading` of the method's cost.

    Where a status is "at most" (the cost), its number is a lower bound of the speed-up.
    """

    status: str
    value: float | None
    low: float | None
    low_status: str
    high: float | None
    high_status: str


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing. fsum: the order of the seeds does not change the last bit."""
    return math.fsum(values) / len(values) if values else None


def average(runs: Sequence[Mapping], read: Callable[[Mapping], float | None]) -> float | None:
    """The mean over runs of a number; None if a run lacks it."""
    values = [read(run) for run in runs]
    return None if any(value is None or not math.isfinite(value) for value in values) else mean(values)


def pooled_sd(groups: Sequence[Values]) -> tuple[float | None, int]:
    """Standard deviation around each group's own mean, pooled, and its degrees of freedom: sum of (n - 1).

    None with 0 degrees of freedom where every group has one value at most.
    """
    freedom = sum(len(group) - 1 for group in groups if group)
    if freedom == 0:
        return None, 0
    squares = [(value - mean(list(group.values()))) ** 2 for group in groups for value in group.values()]
    return math.sqrt(math.fsum(squares) / freedom), freedom


def shared_freedom(groups: Sequence[Values]) -> float:
    """Degrees of freedom of `pooled_sd` where the groups are not independent, as when all are differences to the same runs.

    Those of a sum of correlated variances (Box 1954, doi:10.1214/aoms/1177728717): one group's, times tr(S)² / tr(S²),
    with S the groups' covariance over the seeds that all have. From one group's to `pooled_sd`'s.
    """
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return 0
    seeds = sorted(set(groups[0]).intersection(*groups[1:]))
    if len(seeds) < 2:
        return 1
    off = np.array([[group[seed] for seed in seeds] for group in groups], dtype=float)
    off -= off.mean(axis=1, keepdims=True)
    covariance = off @ off.T
    squares = float((covariance ** 2).sum())
    least = min(len(group) for group in groups) - 1
    return min(pooled_sd(groups)[1], least * max(1.0, float(np.trace(covariance)) ** 2 / squares)) if squares else least


def half_width(sd: float | None, freedom: float, count: int, level: float = 0.95) -> float | None:
    """Half of the t-interval of a mean over `count` values; None where sd or count leaves it unknown."""
    if sd is None or freedom < 1 or count < 1:
        return None
    return float(student.ppf((1 + level) / 2, freedom)) * sd / math.sqrt(count)


def paired(values: Values, reference: Values) -> dict[int, float]:
    """Difference by seed, over the seeds that both have."""
    return {seed: values[seed] - reference[seed] for seed in sorted(values) if seed in reference}


def monotone(curve: Curve) -> list[tuple[float, float, int]]:
    """(cost, best accuracy at that cost or below, index of the point that has it), sorted by cost.

    More money can always buy the cheaper run, so a curve that falls is read as flat.
    """
    steps = []
    for index in sorted(range(len(curve)), key=lambda i: curve[i]):
        cost, accuracy = curve[index]
        if steps and steps[-1][1] >= accuracy:
            accuracy, index = steps[-1][1:]
        steps.append((cost, accuracy, index))
    return steps


def between(curve: Curve) -> Callable[[float], float]:
    """Accuracy of the monotone curve at a cost between its points: a monotone cubic in log cost (Fritsch and Butland 1984).

    Straight lines would lie below a concave curve, and flatter whatever costs lie between the reference's points.
    """
    points = {math.log(cost): accuracy for cost, accuracy, _ in monotone(curve)}
    if len(points) == 1:
        return lambda cost: next(iter(points.values()))
    cubic = PchipInterpolator(list(points), list(points.values()))
    return lambda cost: float(cubic(math.log(cost)))


def cost_at(curve: Curve, target: float | None, start: float | None = None) -> Reading:
    """The cost at which the monotone curve reaches `target`, read `between` its points and never extrapolated.

    `start` is the accuracy before the first step.
    """
    if target is None or not curve:
        return Reading("unknown")
    if start is not None and start >= target:
        return Reading("starts there")
    steps = monotone(curve)
    if steps[0][1] > target:
        return Reading("at most", steps[0][0])
    line = between(curve)
    for i, (cost, accuracy, _) in enumerate(steps):
        if accuracy >= target:
            if accuracy == target:
                return Reading("reached", cost)
            found = brentq(lambda x: line(math.exp(x)) - target, math.log(steps[i - 1][0]), math.log(cost))
            return Reading("reached", float(f"{math.exp(found):.10g}"))         # as far as the search goes anywhere
    return Reading("not reached")


def weights_at(curve: Curve, cost: float) -> list[tuple[int, float]] | None:
    """The points beside `cost`, weighted by how near it lies to each in log cost; None outside of the monotone curve."""
    steps = monotone(curve)
    if not steps or not steps[0][0] <= cost <= steps[-1][0]:
        return None
    for (before, _, left), (after, _, right) in zip(steps, steps[1:], strict=False):
        if before <= cost < after:
            share = math.log(cost / before) / math.log(after / before)
            return [(left, 1 - share), (right, share)]
    return [(steps[-1][2], 1.0)]


def equal_cost(cost: float, points: Sequence[tuple[float, Values]]) -> dict[int, float] | None:
    """Accuracy by seed of the reference at `cost`, read `between` the points of its mean curve; None outside of that curve.

    A seed lies off the mean curve by what its own runs at the points beside lie off their means, so that differences stay
    paired. `points` are the reference's (cost, values) by budget.
    """
    curve = [(price, mean(list(values.values()))) for price, values in points]
    weights = weights_at(curve, cost)
    if weights is None:
        return None
    used = [(points[index][1], weight) for index, weight in weights if weight > 0]
    seeds = [seed for seed in used[0][0] if all(seed in values for values, _ in used)]
    straight = math.fsum(weight * curve[index][1] for index, weight in weights)
    bend = round(between(curve)(cost) - straight, 10) if len(used) > 1 else 0.0
    return {seed: math.fsum(weight * values[seed] for values, weight in used) + bend for seed in seeds}


def speed_up(reference: Reading, curve: Curve, halves: Sequence[float | None], target: float | None,
             start: float | None = None) -> SpeedUp:
    """Cost of the reference over the cost of the curve at `target`.

    The interval: the same reading of the curve moved down and up by `halves`, at each of its points the half-width of the
    interval of its difference to the reference's runs at the target.
    """
    known = reference.status == "reached" and reference.cost is not None

    def read(sign: int) -> tuple[str, float | None]:
        if not known or (sign and any(half is None for half in halves)):
            return "unknown", None
        moved = [(cost, accuracy + sign * half if sign else accuracy)
                 for (cost, accuracy), half in zip(curve, halves, strict=True)]
        status, cost = cost_at(moved, target, start)
        return status, reference.cost / cost if cost else None

    (status, value), (low_status, low), (high_status, high) = read(0), read(-1), read(1)
    return SpeedUp(status, value, low, low_status, high, high_status)


def cheaper(row: tuple[float, float], half: float | None, reference: Curve) -> SpeedUp:
    """Cost of the reference at a row's accuracy over the row's own cost; the row is (cost, accuracy).

    The interval: the same with the row's accuracy moved down and up by `half`, the half-width of the interval of its
    difference to the reference's runs at that accuracy. A status is that of the reference: where it is "at most", its
    smallest budget is above already, and the number is an upper bound.
    """
    cost, accuracy = row

    def read(sign: int) -> tuple[str, float | None]:
        if sign and half is None:
            return "unknown", None
        status, other = cost_at(reference, accuracy + sign * (half or 0))
        return status, other / cost if other else None

    (status, value), (low_status, low), (high_status, high) = read(0), read(-1), read(1)
    return SpeedUp(status, value, low, low_status, high, high_status)


def cost_columns(training: float, preparation: float, reuses: Sequence[int] = (1, 5)) -> dict:
    """What a run costs its user: its training alone, with all of its preparation, and with 1/k of it over k reuses."""
    return {"marginal": training, "with_preparation": training + preparation,
            "amortized": {str(k): training + preparation / k for k in reuses}}
