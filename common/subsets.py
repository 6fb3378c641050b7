"""Which examples of a data set are in use: functions of a text and the data set alone, never of a seed."""
import numpy as np

from common.files import Refused


def rank_in_class(fine: np.ndarray, keep: np.ndarray, shuffle: int | None = 20120) -> np.ndarray:
    """[n] in [0, 1): the place of each kept example within its class, in an order that depends on the data alone.

    Orders of another `shuffle` have nothing to do with each other; None is the data set's own.
    """
    order = np.arange(len(fine)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(fine))
    key = np.empty(len(fine))
    key[order] = np.arange(len(fine))
    rank = np.empty(len(keep))
    for c in np.unique(fine[keep]):
        mine = np.flatnonzero(fine[keep] == c)
        rank[mine[np.argsort(key[keep[mine]])]] = np.arange(len(mine)) / len(mine)
    return rank


def subset(text: str, fine: np.ndarray, coarse: np.ndarray, test_fine: np.ndarray, argument: str = "--subset"):
    """--subset -> (indices kept of train [n], of test [m], "coarse" where the labels must be the superclasses).

    A function of the text and the data set alone. `half` = `share:0.5`: the same share of every class; `first:0.5` the
    first half of every class in the data set's order, for what is in time's order, such as frames of films, where `half`
    would show the past run a neighbour of every new example; `not:3/5` all but the third fifth of every class;
    `classes:80` that many classes, test set too; `members:3/5` that many fine classes of each superclass, labelled by
    superclass. Shares are nested: share:0.1 is a part of share:0.2.

    Raises
        Refused: a text of another form, or one that keeps nothing.
    """
    everything, whole_test = np.arange(len(fine)), np.arange(len(test_fine))
    shuffled = np.random.default_rng(20121).permutation(int(fine.max()) + 1)
    rank = rank_in_class(fine, everything, shuffle=20122)     # not --holdout's order: a share must not lack all of that
    kind, _, value = text.partition(":")
    try:
        if kind == "all" and not value:
            return everything, whole_test, ""
        if kind == "share" or text == "half":
            share = 0.5 if text == "half" else float(value)
            if 0 < share <= 1:
                return everything[rank < share], whole_test, ""
        if kind == "first" and 0 < float(value) <= 1:
            return everything[rank_in_class(fine, everything, shuffle=None) < float(value)], whole_test, ""
        if kind == "not":
            k, n = map(int, value.split("/"))
            if 1 <= k <= n and n > 1:
                return everything[(rank * n).astype(int) != k - 1], whole_test, ""
        if kind == "classes" and 1 < int(value) <= len(shuffled):
            chosen = shuffled[:int(value)]
            return np.flatnonzero(np.isin(fine, chosen)), np.flatnonzero(np.isin(test_fine, chosen)), ""
        if kind == "members":
            k, n = map(int, value.split("/"))
            parent = {int(f): int(c) for f, c in zip(fine, coarse, strict=True)}
            members = [[f for f in shuffled if parent[int(f)] == c] for c in np.unique(coarse)]
            if 1 <= k <= n and all(len(m) == n for m in members):
                return np.flatnonzero(np.isin(fine, [f for m in members for f in m[:k]])), whole_test, "coarse"
    except ValueError:
        pass
    raise Refused(f"{argument} {text!r} is none of: all, half, share:0.2, first:0.5, not:3/5, classes:80, "
                  "members:3/5 (with numbers that fit the data set).")


def parts(text: str, fine: np.ndarray, coarse: np.ndarray, test_fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """--parts -> which train [N] and which test [M] examples are like those that `--subset TEXT` keeps, the old part.

    Of the test set: those whose fine class it keeps.
    """
    keep, _, _ = subset(text, fine, coarse, test_fine, "--parts")
    return np.isin(np.arange(len(fine)), keep), np.isin(test_fine, np.unique(fine[keep]))
