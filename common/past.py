"""The one door to earlier runs. Nothing a past run contains can execute code here."""
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common import models, ranks
from common.files import Refused, read_json
from common.log import read_rows
from common.runfiles import labels_of, read_config, read_weights
from common.seeding import generator
from common.splits import CENTER, sides
from common.tasks import TASKS
from common.teachers import Teacher

if TYPE_CHECKING:
    from common.data import Data


def source(task: str) -> str:
    """Where a task's images come from: those of shapes and shapes-seg are the same ones, with other targets."""
    return task.partition("-")[0]


def finished(folders: list[Path]) -> list[Path]:
    """Those of `folders` whose runs have ended, the others being named; all of them where none has, for PastRun to refuse."""
    ended = [folder for folder in folders if (folder / "summary.json").exists()]
    if ended and len(ended) < len(folders):
        ranks.say("warning: --pick best leaves out past runs that failed or are not finished: "
                  + ", ".join(str(folder) for folder in folders if folder not in ended), file=sys.stderr)
    return ended or folders


class PastRun:
    """A finished run, of any task, seen from a new one on `data`. Refuses, in one sentence, whatever does not fit.

    Raises
        Refused: the run is unfinished or damaged, or may have seen what is evaluated on: it was trained with another --holdout,
            or with one of data that may share images with this run's and are not the same.
    """

    def __init__(self, folder: Path, args, data: "Data"):
        self.folder, self.args, self.data = folder, args, data
        if not (folder / "summary.json").exists():
            raise Refused(f"past run {folder} is not finished (it has no summary.json): run its command to the end first:\n"
                          f"    {read_config(folder).get('command', '?')}")
        self.config, self.summary = read_config(folder), read_json(folder / "summary.json")
        self.name, theirs = self.config["name"], self.config["args"]
        self.seed, holdout = theirs["seed"], theirs["holdout"]
        self.task, self.architecture = theirs["task"], models.model_name(theirs["model"])
        self.image_size = theirs.get("image_size", data.train.size)
        try:
            self.fingerprint, self.classes = self.config["data"]["fingerprint"], self.config["data"]["classes"]
            self.labels = labels_of(self.config)
        except (KeyError, TypeError) as missing:
            raise Refused(f"{folder}/config.json is damaged: it lacks {missing}. Delete the folder and run it again.") from None
        shares = source(self.task) == source(args.task)       # else it cannot have seen what is evaluated on
        if shares and holdout != args.holdout:
            raise Refused(f"past run {self.name} was made with --holdout {holdout:g}, this run with --holdout "
                          f"{args.holdout:g}: past runs must not have seen what is evaluated on. Use equal ones.")
        if shares and holdout and (self.fingerprint != data.fingerprint or self.task != args.task):
            raise Refused(f"past run {self.name} held out a part of other data ({self.task}; images may have come or gone since, "
                          "or it had another --image-size), so that it may have seen what --holdout evaluates on here: run "
                          "its command again on the data as they are now, with other --results.")
        self.reused: set[str] = set()                         # what was read: weights (of any age, to begin with), model and
                                                              # checkpoints (as teachers), examples, curve
        self.kept: dict[str, int] = {}                        # what had to be kept for that: bytes by file and name

    def _read(self, file: str, kind: str) -> dict[str, Tensor]:
        weights = read_weights(self.folder / file)
        self.kept[file] = (self.folder / file).stat().st_size
        self.reused.add(kind)
        return weights

    def model(self, device: torch.device, checkpoint: str | None = None, features: bool = False,
              every_class: bool = False) -> Teacher:
        """The trained model as a teacher: frozen, in eval mode, batch norm folded into its convolutions.

        Its logits are [B, C] of this run's classes, -inf where it does not know one.

        Args
            checkpoint: one of `checkpoints()`; the final weights otherwise.
            features: only its features will be used, so that it may know any classes.
            every_class: refuse one that does not know all of this run's classes.

        Raises
            Refused: it knows none of this run's classes, or not every one that it has to.
        """
        columns = None
        if not features and not self._same_classes():
            if len(self._known()) < (len(self.data.classes) if every_class else 1):
                raise Refused(f"past run {self.name} predicts {len(self.classes)} {self.labels} classes of {self.task}, this run "
                              f"{len(self.data.classes)} {self.data.labels} ones of {self.args.task}: its outputs cannot be used "
                              "here. Name past runs of the same task and classes, or use a method that reuses a trunk "
                              "(baselines/warm_start.py --part trunk), features (methods/attention_transfer.py) or, where some "
                              "classes are the same, their outputs (methods/partial_kd.py --share 1 --until 0.5).")
            theirs = {c: i for i, c in enumerate(self.classes)}
            columns = torch.tensor([theirs.get(c, len(self.classes)) for c in self.data.classes], device=device)     # [C]
        self._check_size()
        model = TASKS[self.task].net(self.architecture, len(self.classes), generator(0, "placeholder"), device,
                                     min(sides(self.image_size)))
        file, kind = (f"checkpoints/{checkpoint}.pt", "checkpoints") if checkpoint else ("final.pt", "model")
        weights = self._read(file, kind)
        self._check({k: w.shape for k, w in model.state_dict().items()}, weights, file)
        model.load_state_dict(weights)
        few = self.data.train.index[:2].to(device)
        return Teacher(model, self.data.train.images(few, torch.full_like(few, CENTER)), self.data.train.amp, columns)

    def _same_classes(self) -> bool:
        return (self.task, self.labels, self.classes) == (self.args.task, self.data.labels, self.data.classes)

    def _known(self) -> list[int]:
        """Classes of this run that the past run knows, in the data set's own numbers."""
        same = (self.task, self.labels) == (self.args.task, self.data.labels)
        return [c for c in self.data.classes if c in self.classes] if same else []

    def digest(self) -> str:
        """64 hex digits that tell its final weights from any other's."""
        contents = (self.folder / "final.pt").read_bytes()
        self.kept["final.pt"] = len(contents)
        self.reused.add("model")
        return hashlib.sha256(contents).hexdigest()

    def _check_size(self) -> None:
        size = min(sides(self.image_size))
        if self.architecture.startswith("tv:vit_") and size != self.data.train.size:
            raise Refused(f"past run {self.name} is a {self.architecture}, for images only of {size} pixels, and "
                          f"this run's have {self.data.train.size}: use --image-size {size}, or name past runs of this size.")

    def _check(self, expected: dict[str, tuple], weights: dict[str, Tensor], file: str) -> None:
        if {k: w.shape for k, w in weights.items()} != expected:
            raise Refused(f"{self.folder / file} does not hold the weights of a {self.architecture} with "
                          f"{len(self.classes)} classes: the file is damaged. Run its command again (config.json).")

    def weights(self, model: nn.Module, part: str = "all", checkpoint: str | None = None) -> dict[str, Tensor]:
        """A state dict for `model`, batch norm's statistics included: `model.load_state_dict(past.weights(model))`.

        The model itself is left as it is. Where the past run knew other classes, the head's rows of those that both know are
        the past ones, the others the model's own, and that is said.

        Args
            part: "all", or "trunk" to take whatever fits but the head, from any task, and to say what did not.
        """
        file = f"checkpoints/{checkpoint}.pt" if checkpoint else "final.pt"
        theirs, mine = self._read(file, "weights"), model.state_dict()
        theirs = {name: w.to(mine[name].device) if name in mine else w for name, w in theirs.items()}
        if part == "trunk":
            fits = {k: w for k, w in theirs.items() if not k.startswith(model.head_name + ".") and k in mine
                    and mine[k].shape == w.shape}
            left = sorted(set(mine) - set(fits))
            if not any(w.ndim for w in fits.values()):        # batch norm's counts of batches fit anything
                raise Refused(f"past run {self.name} is a {self.architecture}, of which nothing fits into this run's "
                              f"{self.args.model}: name past runs of the same model, or train from scratch.")
            ranks.say(f"weights of {self.name}: {len(fits)} of {len(mine)} tensors placed, from scratch: {', '.join(left)}")
            return mine | fits
        if self.architecture != self.args.model or not (self._same_classes() or self._known()):
            raise Refused(f"past run {self.name} is a {self.architecture} for {len(self.classes)} {self.labels} classes of "
                          f"{self.task}, this run a {self.args.model} for {len(self.data.classes)} {self.data.labels} ones of "
                          f"{self.args.task}: the weights do not fit. Name past runs of the same model and task that "
                          "share classes.")
        self._check_size()
        mine_small, theirs_small = (side < 64 for side in (self.data.train.size, min(sides(self.image_size))))
        if self.architecture.startswith("tv:") and mine_small != theirs_small and TASKS[self.task].predicts == "classes":
            raise Refused(f"past run {self.name} has the {self.architecture} for images of {self.image_size} pixels, whose stem "
                          f"is another than for {self.data.train.size}: use --image-size {self.image_size}, or its outputs.")
        if self._same_classes():
            self._check({k: w.shape for k, w in mine.items()}, theirs, file)
            return theirs
        head = [name for name in mine if name.startswith(model.head_name + ".")]
        self._check({k: w.shape if k not in head else (len(self.classes), *w.shape[1:]) for k, w in mine.items()}, theirs, file)
        known = self._known()
        rows, places = ([own.index(c) for c in known] for own in (self.classes, self.data.classes))
        for name in head:
            theirs[name], past = mine[name].clone(), theirs[name]
            theirs[name][places] = past[rows]
        ranks.say(f"weights of {self.name}: head rows of {len(known)} of {len(self.data.classes)} classes placed, the others "
                  "from scratch")
        return theirs

    def checkpoints(self) -> dict[str, float]:
        """Names of the checkpoints kept along the way, with the progress (0..1) each was taken at."""
        names = [path.stem for path in (self.folder / "checkpoints").glob("e*.pt")]
        return dict(sorted(((n, float(n[1:]) / self.config["args"]["epochs"]) for n in names), key=lambda item: item[1]))

    def held_out(self) -> float:
        """Its last accuracy on the examples it held out.

        Raises
            Refused: it held none out; the test set must not choose.
        """
        if not self.config["args"]["holdout"]:
            raise Refused(f"past run {self.name} was made without --holdout, so nothing but the test set says how good it is: "
                          "leave --pick best out, or name runs made with a holdout.")
        return self.summary["test"][TASKS[self.task].score]

    def curve(self) -> list[dict]:
        """The run's rows of metrics.jsonl, epoch 0 first."""
        rows = read_rows(self.folder)
        if not rows:
            raise Refused(f"{self.folder}/metrics.jsonl is missing: that past run was not kept whole. Run its command again "
                          "(config.json).")
        self.kept["metrics.jsonl"] = (self.folder / "metrics.jsonl").stat().st_size
        self.reused.add("curve")
        return rows

    def examples(self, name: str, every_epoch: bool = False) -> Tensor:
        """What was recorded about each training example: [N], averaged over its epochs, or [E, N]; NaN where unseen.

        Raises
            Refused: another data set, other labels, a statistic that was not recorded, or only its mean was kept.
        """
        if self.fingerprint != self.data.fingerprint and self.task == self.args.task:
            mine = (self.data.train.height, self.data.train.width)
            raise Refused(f"past run {self.name} recorded examples of other images of {self.task}: " + (
                "files have come, gone or changed since. Make it again; let it see a part of today's with --subset."
                if sides(self.image_size) == mine else f"it had --image-size {self.image_size}, this run has "
                f"{self.args.image_size}. Use equal sizes, or make it again."))
        if self.task != self.args.task:
            raise Refused(f"past run {self.name} recorded examples of another data set ({self.task}): they say nothing about "
                          f"this one ({self.args.task}). Name past runs of the same data set.")
        if self.labels != self.data.labels:
            raise Refused(f"past run {self.name} recorded examples with {self.labels} labels, this run has {self.data.labels} "
                          f"ones: use --labels {self.labels}, or name past runs with {self.data.labels} labels.")
        path = self.folder / "examples.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [n.removesuffix(".mean") for n in file.files]
                found = file[name] if name in file.files else file[f"{name}.mean"] if f"{name}.mean" in file.files else None
                whole = name in file.files
        except Exception as error:                            # a damaged zip can raise anything
            raise Refused(f"{path} is missing or damaged ({type(error).__name__}): run that past run's command again.") from None
        if found is None:
            raise Refused(f"past run {self.name} did not record {name!r}; it has {', '.join(sorted(names))}. "
                          "Name past runs of a script that records it.")
        if found.ndim != 2 or found.shape[1] != self.data.examples:
            raise Refused(f"{path} is damaged: {name!r} has shape {found.shape}, expected [epochs, {self.data.examples}]. "
                          "Run that past run's command again.")
        if every_epoch and not whole:
            raise Refused(f"past run {self.name} kept only the mean of {name!r} over its epochs (--slim): run its command "
                          "again without --slim.")
        self.reused.add("examples")
        self.kept[f"examples.npz {name}"] = found.nbytes
        table = torch.from_numpy(found.astype(np.float32)).to(self.data.train.device)
        return table if every_epoch else table.nanmean(0)
