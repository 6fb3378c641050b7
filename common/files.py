"""Files that are whole or not there, and errors that say what to do."""
import fcntl
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import torch


class Refused(SystemExit):
    """One clear sentence for the person at the console, and exit code 1 instead of a traceback."""

    def __str__(self) -> str:
        return str(self.code)


def listed(names: Sequence[str], most: int = 10) -> str:
    """What a message says of many names; bytes in them that are no UTF-8 are escaped, which a console would not take."""
    shown = ", ".join(os.fsencode(name).decode(errors="backslashreplace") for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def unwritable(path: Path, error: OSError) -> Refused:
    return Refused(f"cannot write {path}: {error.strerror}. Make room or choose another --results, then run the same command "
                   "again: it goes on from its last checkpoint.")


def lock(path: Path, wait: bool) -> TextIO | None:
    """Makes `path` and locks it; the lock goes with the file that is returned, or with the process. None if another has it.

    Raises
        Refused: the file cannot be made, or its file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = open(path, "w")
    except OSError as error:
        raise Refused(f"cannot make {path.parent}: {error.strerror}. Choose another --results or --data-dir.") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    except OSError as error:
        raise Refused(f"cannot lock {path}: {error.strerror}. Choose another folder, on a file system that has locks.") from None
    return held


def write_atomic(path: Path, write: Callable[[BinaryIO], object] | str) -> None:
    """Writes text, or what `write(file)` puts into the binary file, so that `path` is the old file or the whole new one.

    Raises
        Refused: the folder cannot be written (full disk, no permission); the partial file is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            if isinstance(write, str):
                file.write(write.encode())
            else:
                write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def reserve(path: Path) -> None:
    """Takes the disk space of a file that is about to be written through memory: a full disk would end that with a bus error.

    Raises
        OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):                        # not so on a Mac
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def write_torch(path: Path, value: object) -> None:
    """torch.save by way of memory, since it reports a full disk as an internal error of its own."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomic(path, lambda out: out.write(buffer.getbuffer()))


def write_json(path: Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Raises
        Refused: the file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}. Name the folder of a whole run or study.") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refused(f"{path} is damaged: it is no JSON object. Delete its folder and run that command again.")
    return value
