"""The toy benchmark on disk: the drawn streets in the folders and file formats of GTA and Cityscapes."""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from hrda_lib.data import CITYSCAPES
from toy import streets

IDS = np.array([entry.id for entry in CITYSCAPES], np.uint8)  # by train id
PALETTE = np.zeros((34, 3), np.uint8)
PALETTE[IDS] = [entry.colour for entry in CITYSCAPES]
START = {"gta": 0, "train": 10_000, "val": 20_000}  # the first drawing of each part: no two share one


def write_toy_data(root: Path, *, seed: int, train: int = 300, val: int = 60) -> dict[str, str | int]:
    """Write ``root/gta`` and ``root/cityscapes``, or find them there; returns what the drawings depend on.

    Args:
        root: a new or empty folder, or what an earlier call with the same settings wrote.
        seed: of all drawings; the same seed gives the same bytes.
        train: images of the game, and as many of the city, at most 10,000.
        val: further images of the city, at most 10,000.

    Raises:
        ValueError: ``root`` holds something else, or cannot be written; nothing is left half-drawn.
    """
    code = hashlib.sha256(Path(__file__).read_bytes() + Path(streets.__file__).read_bytes()).hexdigest()
    settings: dict[str, str | int] = {"seed": seed, "train": train, "val": val, "code": code}
    written = json.dumps(settings) + "\n"
    if (root / "toy.json").is_file() and (root / "toy.json").read_bytes() == written.encode():
        return settings
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root}: holds something else than these toy data; remove it or choose another folder")
    jobs = [(part, i) for part, count in (("gta", train), ("train", train), ("val", val)) for i in range(count)]
    try:
        place = root.resolve()  # a linked folder is filled, its link stays
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{place.name}.", dir=place.parent) as folder:
            part = Path(folder) / "data"
            for kind, i in tqdm(jobs, "drawing toy data", disable=not sys.stderr.isatty()):
                draw(part, kind, i, seed)
            (part / "toy.json").write_text(written)
            part.rename(place)  # refused if another process filled it meanwhile
    except OSError as error:
        raise ValueError(f"{root}: the toy data cannot be written ({error.strerror or error})") from error
    return settings


def draw(root: Path, kind: str, i: int, seed: int) -> None:
    """One street: its image, and its label, which in GTA is a palette PNG."""
    index = START[kind] + i
    street = streets.draw("game" if kind == "gta" else "city", seed, index)
    label = Image.fromarray(IDS[street.label])
    image_file, label_file = (root / "gta" / folder / f"{i + 1:05d}.png" for folder in ("images", "labels"))
    if kind == "gta":
        label.putpalette(PALETTE.tobytes())
    else:
        stem = f"{kind}/{street.city}/{street.city}_{index:06d}_000019"
        image_file = root / "cityscapes/leftImg8bit" / f"{stem}_leftImg8bit.png"
        label_file = root / "cityscapes/gtFine" / f"{stem}_gtFine_labelIds.png"
    for file, picture in ((image_file, Image.fromarray(street.image)), (label_file, label)):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, compress_level=1)  # 6 takes three times as long for an eighth less
