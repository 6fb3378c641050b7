"""What any finished run left, read from its folder without its task or data; nothing in it can execute code here."""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.files import Refused, read_json


def find_runs(paths: list[str]) -> list[Path]:
    """Folders of runs at or below `paths`, sorted by seed.

    Raises
        Refused: a path that is not there, or that holds no run.
    """
    found = []
    for path in map(Path, paths):
        configs = [path / "config.json"] if (path / "config.json").exists() else sorted(path.rglob("config.json"))
        if not configs and (path / "failed.json").exists() and len(paths) > 1:
            continue                                          # a trial that was refused before it began left nothing else
        if not configs:
            raise Refused(f"--past {path}: {'there is no run in it' if path.exists() else 'no such folder'}. Name a run's "
                          "folder (it holds config.json) or a folder of runs.")
        found += [config.parent for config in configs]
    if paths and not found:
        raise Refused(f"--past {' '.join(paths)}: none of these runs began. Their failed.json says why.")
    return sorted(set(found), key=lambda folder: (read_config(folder)["args"]["seed"], folder))


def names(folders: Sequence[Path], paths: Sequence[str]) -> list[str]:
    """Names of the runs in `folders`, and of those of `paths` that failed before they began, by seed: what is reused was planned.

    Theirs are what the queue that started them has written down.
    """
    found = [read_config(folder)["name"] for folder in folders]
    lost = [read_json(Path(path) / "failed.json").get("name") for path in paths
            if (Path(path) / "failed.json").exists() and not any(Path(path).rglob("config.json"))]
    return sorted([*found, *filter(None, lost)], key=lambda name: int(name.rpartition("seed")[2])) if any(lost) else found


def read_config(folder: Path) -> dict:
    """Raises
        Refused: config.json is missing, damaged, or lacks what makes a run a past run.
    """
    config = read_json(folder / "config.json")
    args = config.get("args") if isinstance(config.get("args"), dict) else {}
    for name, kind in (("task", str), ("model", str), ("seed", int), ("holdout", float), ("epochs", float),
                       ("lr", float), ("weight_decay", float), ("batch_size", int)):
        if not isinstance(args.get(name), kind):
            raise Refused(f"{folder}/config.json is damaged: its args lack {name!r}. Delete the folder and run it again.")
    if not isinstance(config.get("name"), str):
        raise Refused(f"{folder}/config.json is damaged: it lacks 'name'. Delete the folder and run it again.")
    return config


def labels_of(config: dict) -> str:
    """"fine" or "coarse", as the run's examples had them: --subset members:3/5 makes them coarse whatever --labels says."""
    args, data = config["args"], config.get("data")
    if isinstance(data, dict) and "labels" in data:
        return data["labels"]
    return "coarse" if str(args.get("subset")).startswith("members") else args.get("labels", "fine")    # of first versions


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict in float32 whatever it was kept in.

    Raises
        Refused: the file is missing, damaged, or holds anything but tensors.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refused(f"{path} is missing: that past run was not kept whole. Run its command again (config.json).") from None
    except Exception as error:                                # a damaged zip or a forbidden pickle can raise anything
        raise Refused(f"{path} is damaged or holds more than weights ({type(error).__name__}). Delete its folder and run "
                      "its command again (config.json).") from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise Refused(f"{path} does not hold a state dict of tensors; expected what a finished run leaves as final.pt. "
                      "Delete its folder and run its command again, or name another past run.")
    return {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}
