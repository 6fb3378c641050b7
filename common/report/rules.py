"""The fixed text of REPORT.md: what a figure shows, how the numbers are made. `{noun}` is what the study's score is called."""

FIGURES = {
    "tradeoff": "Trade-off curves: every point is complete runs with the schedule annealed to that budget. Bands are "
                "95 % t-intervals. Hollow points lack planned seeds. Lines are the curves that are read between "
                "points, see [the rules](#how-the-numbers-are-made); where one falls, it is read as flat. Points beside each "
                "other at one budget have that budget.",
    "accuracy_over_cost": "Learning curves of each method's longest budget up to 1, mean over seeds. Before its last epoch a "
                          "curve has not annealed: compare the ends, not the middles. Hollow ends lack planned seeds.",
    "landscape": "Every method at one budget, with its 95 % interval, the best first; none whose cost lies outside scratch's "
                 "budgets. Hollow points lack planned seeds.",
    "step_cost": "Cost of one training step over scratch's in the same budget, preparation left out.",
    "speedup": "Speed-up over scratch at equal {noun}, with its interval. Filled: by FLOPs. Hollow, where they compare: by "
               "counted seconds. An arrow: that end of the interval is open.",
}

RULES = """\
- **Full {noun}** is the mean last-epoch test {noun} of scratch at budget 1 in the setting of the new run. A \
budget is a number of epochs, as a share of those of budget 1; every run anneals its schedule to its own budget.
- **Intervals** are 95 % t-intervals with the standard deviation pooled over the budgets of a method. The pooling \
takes budgets as independent, although they share seeds, and as equally noisy, although they are not. A method \
with one budget has its own seeds alone: two degrees of freedom for three. Where a method's rows all subtract much the same runs \
(speed-ups, over scratch at budget 1 or 2, past runs charged) the degrees of freedom are Box's (1954): from the rows' \
covariance, between those of one row and of all. So all rows of a method have the same ±, and the same \
runs another one in a study with other budgets. **†** marks a difference whose interval leaves out 0 by the pooling \
alone: that of the row's own seeds, with their own deviation, does not, and fresh seeds would have to say. Intervals are over \
training seeds, on one test set and with these past runs: what \
other test examples or other past runs would give is not in them. [unknown] means too few seeds for an interval.
- **Curves** are read between their points by a monotone cubic in log cost (Fritsch and Butland 1984): they are concave, and \
straight lines would flatter whatever costs lie between scratch's budgets.
- **Differences** are paired by seed. Scratch at equal cost is read off its mean curve; a seed lies off that curve as far as \
its own scratch runs at the two budgets beside lie off theirs; a cost within 1 % of either end of the curve is read at that end, \
since steps are whole. Past runs charged: scratch that costs what the row and \
all runs before it cost together.
- **Cost to {noun}** is read off the curve over a method's complete rows. *Not reached*: not at its largest \
budget. *At most X*: its smallest budget, which costs X, is above already. *Starts there*: the reused weights have \
it before the first step. Nothing is extrapolated.
- **Speed-up** is scratch's cost over the method's at equal {noun}; scratch's cost to full {noun} is budget 1 by \
definition. Its interval reads the method's curve moved down and up, each row by the half-width of the interval of its \
paired difference to scratch's runs at the target, with Box's degrees of freedom. What reading between budgets adds is not in \
it. *Not reached* as an end of an interval: the moved curve does not get there. *Unknown*: \
scratch's own cost is, as where its smallest budget is above already.
- **Cheaper than scratch at its {noun}** is scratch's FLOPs to a row's {noun} over those of the row, for one budget \
what the speed-up is for the whole curve; its interval moves the row by the half-width of its paired difference to scratch, \
read where scratch is as good, with Box's degrees of freedom. *Open*: scratch has no budget that gets there.
- **FLOPs** are those of training and preparation. Evaluation and the optimizer's own arithmetic are not counted. \
FLOPs are the headline, since runs may have shared a machine. Counted seconds leave out loading data, compiling, \
evaluating and checkpointing; they contain preparation. They are compared only where one version of the code made \
both rows on one device, and where steps of the same arithmetic took the same time, 10 % aside: those of one row, and those of \
all of scratch's.
- **Hyperparameters**: all methods have scratch's learning rate and weight decay of their budget; their own are those of \
their paper or this repository's first choice, and not tuned. {tuned}What loses may win with others.
- **Incomplete rows** (fewer seeds than planned) are shown, but no curve, speed-up or recommendation uses them.
- **No interval is corrected** for looking at many methods at once."""
