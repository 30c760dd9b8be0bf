"""A toy benchmark on disk: the drawn streets of mini_street in the folders and file formats of GTA and Cityscapes."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hrda_lib.data import CITYSCAPES
from support import mini_street

IDS = np.array([entry.id for entry in CITYSCAPES], np.uint8)  # by train id
PALETTE = np.zeros((34, 3), np.uint8)
PALETTE[IDS] = [entry.colour for entry in CITYSCAPES]

START = {"gta": 0, "train": 10_000, "val": 20_000}  # the first drawing of each part: no two share one
PATTERNS = ("gta/*/*.png", "cityscapes/leftImg8bit/*/*/*_leftImg8bit.png", "cityscapes/gtFine/*/*/*_labelIds.png")
KIND, VERSION = "mini data of hrda_lib", 1


def write_mini_data(
    root: Path, *, seed: int, train: int = 300, val: int = 60, workers: int | None = None, progress: bool = True
) -> tuple[Path, Path]:
    """Write ``root/gta`` and ``root/cityscapes``, or find them there; return both folders.

    With several workers, scripts call this below ``if __name__ == "__main__"``: each worker imports the script.

    Args:
        root: a new or empty folder, or what an earlier call wrote; that is replaced where settings or code differ.
        seed: of all drawings; the same seed gives the same bytes.
        train: images of the game, and as many of the city.
        val: further images of the city.
        workers: processes, of one thread each; by default one a core, 16 at most.
        progress: show a bar.

    Raises:
        ValueError: a bad argument, a folder that is not ours, or a failure such as a full disk, which leaves nothing.
    """
    for name, count in (("train", train), ("val", val)):
        if not 1 <= count <= 10_000:
            raise ValueError(f"{name} must be 1 to 10000 images, got {count}")
    if seed < 0 or (workers is not None and workers < 1):
        raise ValueError(f"seed must be 0 or more and workers 1 or more, got {seed} and {workers}")
    code = hashlib.sha256(Path(__file__).read_bytes() + Path(mini_street.__file__).read_bytes()).hexdigest()
    settings = {"kind": KIND, "version": VERSION, "seed": seed, "train": train, "val": val, "code": code}
    folders = root / "gta", root / "cityscapes"
    if _is_there(root, settings):
        return folders
    _check_ours(root)

    place = root.resolve()  # a link stays one
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")  # its own for each of several runs
    jobs = [(kind, i) for kind, count in (("gta", train), ("train", train), ("val", val)) for i in range(count)]
    try:
        part.mkdir(parents=True)
        _write_all(part, seed, jobs, workers or min(os.cpu_count() or 1, 16), progress)
        (part / "mini.json").write_text(json.dumps({**settings, **_files(part)}, indent=2) + "\n")
        _move(part, place, settings)
    except OSError as error:
        need = f"it needs about {len(jobs) // 6 + 1} MB"
        raise ValueError(f"{root}: cannot write the mini data ({error.strerror or error}); {need}") from error
    except Exception as error:
        raise ValueError(f"{root}: cannot make the mini data ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folders


def _is_there(root: Path, settings: dict[str, Any]) -> bool:
    """Whether a complete tree of these settings is there."""
    return _read(root) == {**settings, **_files(root)}


def _read(root: Path) -> dict[str, Any]:
    """``mini.json``, or nothing where there is none of ours."""
    try:
        kept = json.loads((root / "mini.json").read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("kind") == KIND else {}


def _files(root: Path) -> dict[str, int]:
    """Number and size of the images and labels: a lost or cut file shows; files that others add do not count."""
    sizes = [file.stat().st_size for pattern in PATTERNS for file in root.glob(pattern)]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _check_ours(root: Path) -> None:
    """Refuse to replace what somebody else wrote."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root}: is no folder; choose another one for the mini data")
    found = {file.name for file in root.iterdir()} if root.exists() else set()
    others = sorted(found - {"gta", "cityscapes", "mini.json"} if _read(root) else found)
    if others:
        raise ValueError(f"{root}: holds {others[0]}, which is not of the mini data; choose a new or empty folder")


def _write_all(root: Path, seed: int, jobs: Sequence[tuple[str, int]], workers: int, progress: bool) -> None:
    """Draw and write every image, in this process or in several."""
    write = partial(_write_one, root, seed)
    show = partial(tqdm, total=len(jobs), desc="drawing mini data", disable=not progress)
    if workers == 1:
        for _ in show(map(write, jobs)):
            pass
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads
    with ProcessPoolExecutor(workers, spawn, _end_with_parent) as pool:
        try:
            # Ctrl-C reaches every process; workers inherit this mask, and so the first process alone answers
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                written = pool.map(write, jobs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for _ in show(written):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, wait for begun images only


def _end_with_parent() -> None:
    """Without this, the workers of a killed process would wait for more work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_one(root: Path, seed: int, job: tuple[str, int]) -> None:
    """Draw one street; write its image and its label."""
    kind, i = job
    index = START[kind] + i
    street = mini_street.draw("game" if kind == "gta" else "city", seed, index)
    label = Image.fromarray(IDS[street.label])
    if kind == "gta":
        label.putpalette(PALETTE.tobytes())
        image_file, label_file = (root / "gta" / folder / f"{i + 1:05d}.png" for folder in ("images", "labels"))
    else:
        stem = f"{kind}/{street.city}/{street.city}_{index:06d}_000019"
        image_file = root / "cityscapes/leftImg8bit" / f"{stem}_leftImg8bit.png"
        label_file = root / "cityscapes/gtFine" / f"{stem}_gtFine_labelIds.png"
    for file, picture in ((image_file, Image.fromarray(street.image)), (label_file, label)):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, compress_level=1)  # 6 takes three times as long for an eighth less


def _move(part: Path, root: Path, settings: dict[str, Any]) -> None:
    """Put a finished tree in the place of nothing, an empty folder or a stale tree."""
    if _is_there(root, settings):
        return  # another run was faster
    _check_ours(root)  # again, after a minute
    old = part.with_suffix(".old")
    try:
        if root.exists():
            root.rename(old)
        part.rename(root)
    except OSError:
        if not _is_there(root, settings):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
