"""Data sets as they lie on a disk, small and drawn at random: every published layout and encoding."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrda_lib.data import Sample

SIZE = (14, 20)
# all ids of Cityscapes with their colours, typed in from its label definitions; 34 is GTA's licence plate
COLOURS = [
    *[(0, 0, 0)] * 5,
    *[(111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232), (250, 170, 160), (230, 150, 140), (70, 70, 70)],
    *[(102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100), (150, 120, 90), (153, 153, 153)],
    *[(153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180)],
    *[(220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90), (0, 0, 110), (0, 80, 100)],
    *[(0, 0, 230), (119, 11, 32), (0, 0, 142)],
]
FRAMES = {
    "train": ["aachen/aachen_000000_000019", "zurich/zurich_000001_000019", "bochum/bochum_000000_000313"],
    "val": ["frankfurt/frankfurt_000000_000294"],
}
NIGHT = "GOPR0356/GOPR0356_frame_000321"
BDD = ("7d06fefd-f7be05a6", "7d128593-0ccfea4c")
VISTAS = ("-0mXqxOjZDsMeQ8jvjA_uw", "AaUpMv1_2zsvcbFhqBMqbw")


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(*SIZE, 3)).astype(np.uint8)


def every_id(highest: int, seed: int) -> np.ndarray:
    """Each id of 0..``highest`` at least once."""
    ids = np.random.default_rng(seed).integers(highest + 1, size=SIZE).astype(np.uint8)
    ids.flat[: highest + 1] = np.arange(highest + 1)
    return ids


def some_ignored(highest: int, seed: int) -> np.ndarray:
    ids = every_id(highest, seed)
    ids[-1] = 255
    return ids


def filled(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full(size, value, np.uint8)


# Files


def saved(file: Path, array: np.ndarray) -> None:
    """A picture, or ids as grey levels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def picture(file: Path, seed: int) -> None:
    saved(file, pixels(seed))


def save_palette(file: Path, ids: np.ndarray, colours: list[tuple[int, int, int]] = COLOURS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    image.putpalette([value for colour in colours for value in colour])
    assert image.mode == "P"
    image.save(file)


def rgb16(file: Path, ids: np.ndarray) -> None:
    """Class in the first channel, instance in the second, as SYNTHIA stores them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    instance = (np.arange(ids.size) % 256).astype(np.uint16).reshape(ids.shape)
    assert cv2.imwrite(str(file), np.stack([0 * instance, instance, ids.astype(np.uint16)], axis=2))


# Trees: each returns its root


def write(root: Path, count: int = 3, size: tuple[int, int] = (24, 32), *, labels: bool = True) -> Path:
    """Plain folders: image i shows class i in its left half and class 0 elsewhere; red is the label, green is i."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(count):
        label = filled(0, size)
        label[:, : size[1] // 2] = i
        ramp = (np.arange(size[0] * size[1]).reshape(size) % 251).astype(np.uint8)
        saved(root / "images" / f"{i}.png", np.stack([label, filled(i, size), ramp], axis=2))
        if labels:
            saved(root / "labels" / f"{i}.png", label)
    return root


def arrays(root: Path, count: int = 2, channels: int = 4) -> Path:
    """Plain folders of NumPy files, float32 images whose first channel is 10 times their label."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        random = np.random.default_rng(i)
        label = random.integers(3, size=SIZE).astype(np.uint8)
        np.save(root / "images" / f"{i}.npy", np.stack([10 * label, *random.random((channels - 1, *SIZE))], dtype="f4"))
        np.save(root / "labels" / f"{i}.npy", label)
    return root


def list_file(root: Path) -> Path:
    for i in range(2):
        picture(root / "pictures of a town" / f"größe {i}.jpg", i)
        saved(root / "ids" / f"{i}.png", every_id(18, i))
    lines = [f"pictures of a town/größe {i}.jpg\tids/{i}.png" for i in range(2)]
    (root / "list.txt").write_text("\n".join([lines[0], "", lines[1], ""]), encoding="utf-8")
    return root


def gta(root: Path, count: int = 2, first: int = 1) -> Path:
    for i in range(count):
        picture(root / "images" / f"{i + first:05}.png", i)
        save_palette(root / "labels" / f"{i + first:05}.png", some_ignored(34, i))
    return root


def synthia(root: Path) -> Path:
    for i in range(2):
        picture(root / "RGB" / f"{i:07}.png", i)
        rgb16(root / "GT" / "LABELS" / f"{i:07}.png", every_id(22, i))
    return root


def cityscapes(root: Path, *, labels: bool = True) -> Path:
    for split, frames in FRAMES.items():
        for i, frame in enumerate(frames):
            picture(root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", i)
            if labels:
                saved(root / "gtFine" / split / f"{frame}_gtFine_labelIds.png", some_ignored(33, i))
                save_palette(root / "gtFine" / split / f"{frame}_gtFine_color.png", some_ignored(33, i))
    return root


def acdc(root: Path) -> Path:
    for i, kind in enumerate(("snow", "fog", "rain", "night")):
        for split in ("train", "val"):
            frame = f"GOPR0{i}/GOPR0{i}_frame_000041"
            picture(root / "rgb_anon" / kind / split / f"{frame}_rgb_anon.png", i)
            for ending in ("TrainIds", "Ids"):
                saved(root / "gt" / kind / split / f"{frame}_gt_label{ending}.png", some_ignored(18, i))
    return root


def dark_zurich(root: Path, splits: Sequence[str] = ("train", "val", "test")) -> Path:
    for split in splits:
        picture(root / "rgb_anon" / split / "night" / f"{NIGHT}_rgb_anon.png", 0)
        picture(root / "rgb_anon" / split / "day" / "GOPR0351" / "GOPR0351_frame_000001_rgb_ref_anon.png", 0)
    if "val" in splits:
        saved(root / "gt" / "val" / "night" / f"{NIGHT}_gt_labelTrainIds.png", some_ignored(18, 0))
    return root


def bdd100k(root: Path) -> Path:
    for i, name in enumerate(BDD):
        picture(root / "images" / "10k" / "val" / f"{name}.jpg", i)
        saved(root / "labels" / "sem_seg" / "masks" / "val" / f"{name}.png", some_ignored(18, i))
    return root


def mapillary(root: Path, masks: str = "labels") -> Path:
    colours = np.random.default_rng(0).integers(256, size=(256, 3)).tolist()
    for i, name in enumerate(VISTAS):
        picture(root / "validation" / "images" / f"{name}.jpg", i)
        save_palette(root / "validation" / masks / f"{name}.png", every_id(65, i), colours)
    return root


class One:
    """A labelled data set of one random sample, in memory."""

    def __init__(self, size: tuple[int, int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.image = torch.from_numpy(random.integers(256, size=(3, *size)).astype(np.uint8))
        self.ids = torch.from_numpy(random.integers(20, size=size).astype(np.uint8))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image, self.ids, "one")

    def label(self, index: int) -> Tensor:
        return self.ids

    def label_file(self, index: int) -> Path:
        return Path("one.png")

    def fingerprint(self) -> str:
        return "one"
