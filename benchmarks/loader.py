"""Loading of training crops beside the bare decoder and the released code's way, and counting of label pixels.

Pictures of the official sizes (GTA 1914 x 1052, Cityscapes 2048 x 1024) are drawn first, and photos of 16 megapixels.

The released loader is written here from its description, with OpenCV for images as there: decode image and label,
resize both whole, draw up to ten crops until no class fills more than 75 %, normalise; and all of this again, up to ten
times, until the crop shows enough of the class that rare-class sampling wants. Ours ends with the same float images;
the library's samples are uint8, and are normalised on the device.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib.data import (
    CITYSCAPES,
    Cityscapes,
    Gta,
    RareClasses,
    Resized,
    ResizedImages,
    SourceCrops,
    TargetCrops,
    UnlabeledImages,
    count_labels,
    normalize,
)
from rounds import OURS, Row, alternate

BARE, RELEASED = "bare decoder", "released loader"
CROP, FIT, MIN_PIXELS, MIN_CROP_PIXELS = (1024, 1024), (1440, 2560), 3000, 6000
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
Picture = npt.NDArray[np.uint8]


def smooth(size: tuple[int, int], cells: int, channels: int, generator: torch.Generator) -> Tensor:
    """A random field (channels, H, W) in [0, 1] whose spots have a size of about H / cells."""
    coarse = torch.rand(1, channels, cells, 2 * cells, generator=generator)
    return interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1)


def draw(size: tuple[int, int], generator: torch.Generator) -> tuple[Picture, Picture]:
    """An image with fine noise, so that its PNG takes time to decode, and ids, some of rare classes."""
    image = sum(smooth(size, cells, 3, generator) / 2**i for i, cells in enumerate((3, 9, 27, 81))) * 110
    image = image + 2 * torch.randn(size, generator=generator)
    common = smooth(size, 6, 5, generator).argmax(0)
    spots = smooth(size, 14, 14, generator)
    train_ids = torch.where(spots.amax(0) > 0.995, 5 + spots.argmax(0), common)
    ids = torch.tensor([entry.id for entry in CITYSCAPES], dtype=torch.uint8)[train_ids]
    return image.clamp(0, 255).byte().permute(1, 2, 0).numpy(), ids.numpy()


def write(root: Path, count: int) -> None:
    """``gta`` in its layout, and images of Cityscapes' size in ``target``."""
    generator = torch.Generator().manual_seed(0)
    for folder in ("gta/images", "gta/labels", "target"):
        (root / folder).mkdir(parents=True)
    palette = np.zeros((256, 3), np.uint8)
    for entry in CITYSCAPES:
        palette[entry.id] = entry.colour
    for i in range(count):
        image, ids = draw((1052, 1914), generator)
        Image.fromarray(image).save(root / f"gta/images/{i:05}.png")
        label = Image.fromarray(ids).convert("P")
        label.putpalette(palette.ravel().tolist())
        label.save(root / f"gta/labels/{i:05}.png")
        Image.fromarray(draw((1024, 2048), generator)[0]).save(root / f"target/{i:05}.png")


def decoded(*files: Path) -> list[Picture]:
    """What every loader has to do."""
    return [np.asarray(Image.open(file)) for file in files]


class ReleasedLoader:
    """Full decode, full resize, ten tries of a crop, ten tries of all of it."""

    def __init__(self, rare: RareClasses | None, seed: int) -> None:
        self.rare, self.generator, self.random = rare, torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        self.table = np.full(256, 255, np.uint8)
        self.table[[entry.id for entry in CITYSCAPES]] = np.arange(len(CITYSCAPES))

    def source(self, root: Path) -> tuple[npt.NDArray[np.float32], Picture]:
        assert self.rare is not None
        index, wanted = self.rare.draw(self.generator)
        for _ in range(10):
            image, label = self.cropped(root / f"images/{index:05}.png", root / f"labels/{index:05}.png")
            if np.sum(label == wanted) > MIN_CROP_PIXELS:
                break
        return image, label

    def cropped(self, image_file: Path, label_file: Path) -> tuple[npt.NDArray[np.float32], Picture]:
        image = cv2.imread(str(image_file))
        label = self.table[np.asarray(Image.open(label_file))]
        factor = min(FIT[0] / image.shape[0], FIT[1] / image.shape[1])
        size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        for _ in range(10):
            top, left = (self.random.integers(have - want + 1) for have, want in zip(label.shape, CROP, strict=True))
            part = label[top : top + CROP[0], left : left + CROP[1]]
            ids, counts = np.unique(part, return_counts=True)
            counts = counts[ids != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        return self.finished(image[top : top + CROP[0], left : left + CROP[1]], part)

    def target(self, file: Path) -> npt.NDArray[np.float32]:
        image = cv2.imread(str(file))
        image = cv2.resize(image, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        top, left = (self.random.integers(have - want + 1) for have, want in zip(image.shape, CROP, strict=False))
        part = image[top : top + CROP[0], left : left + CROP[1]]
        return self.finished(part, part[..., 0])[0]

    def finished(self, image: Picture, label: Picture) -> tuple[npt.NDArray[np.float32], Picture]:
        if self.random.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        normal = (cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) - MEAN) / STD
        return np.ascontiguousarray(normal.transpose(2, 0, 1)), np.ascontiguousarray(label)


class Many:
    """A data set's labels several times over."""

    def __init__(self, dataset: Gta, times: int) -> None:
        self.dataset, self.length = dataset, times * len(dataset)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def count(self, index: int) -> Tensor:
        return self.dataset.count(index % len(self.dataset))

    def decoded(self, index: int) -> list[Picture]:
        return decoded(self.dataset.label_file(index % len(self.dataset)))


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, count = Path(folder), 1 if small else 8
        write(root, count)
        yield from source_rows(Gta(root / "gta"), count, rounds)
        yield from target_rows(UnlabeledImages(sorted((root / "target").iterdir())), count, rounds)
        yield from draft_rows(root, (432, 576) if small else (3456, 4608), rounds)


def all_of(run: Callable[[int], object], count: int) -> Callable[[], None]:
    """One call for all samples."""

    def each() -> None:
        for i in range(count):
            run(i)

    return each


def source_rows(gta: Gta, count: int, rounds: int) -> Iterator[Row]:
    rare = RareClasses(count_labels(gta)[:, : len(CITYSCAPES)], min_pixels=MIN_PIXELS)
    released = ReleasedLoader(rare, 0)
    crops = SourceCrops(Resized(gta, FIT), CROP, rare_classes=rare, min_crop_pixels=MIN_CROP_PIXELS)
    files = gta.unlabeled().files
    bare = all_of(lambda i: decoded(files[i], gta.label_file(i)), count)
    what = f"{count} pictures of GTA"
    yield alternate(f"{what}, samples", {OURS: all_of(lambda i: gta[i], count), BARE: bare}, rounds=rounds)
    ours = all_of(lambda i: normalize(crops[i].image), count)
    ways = {OURS: ours, BARE: bare, RELEASED: all_of(lambda _: released.source(gta.root), count)}
    yield alternate(f"{what}, crops of 1024 x 1024, normalised", ways, rounds=rounds)
    ways = {OURS: all_of(gta.count, count), BARE: all_of(lambda i: decoded(gta.label_file(i)), count)}
    yield alternate(f"{count} labels of GTA, counted", ways, rounds=rounds)
    many = Many(gta, 20)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ways = {OURS: lambda: count_labels(many), BARE: lambda: list(pool.map(many.decoded, many))}  # type: ignore[dict-item]
        yield alternate(f"{len(many)} labels of GTA, counted in {os.cpu_count()} threads", ways, rounds=rounds)


def target_rows(target: UnlabeledImages, count: int, rounds: int) -> Iterator[Row]:
    released, crops = ReleasedLoader(None, 0), TargetCrops(target, CROP, margins=Cityscapes.margins)
    ways = {
        OURS: all_of(lambda i: normalize(crops[i].image), count),
        BARE: all_of(lambda i: decoded(target.files[i]), count),
        RELEASED: all_of(lambda i: released.target(target.files[i]), count),
    }
    yield alternate(f"{count} pictures of Cityscapes, crops of 1024 x 1024, normalised", ways, rounds=rounds)


def draft_rows(root: Path, size: tuple[int, int], rounds: int) -> Iterator[Row]:
    file = root / "photo.jpg"
    Image.fromarray(draw(size, torch.Generator().manual_seed(1))[0]).save(file, quality=92)
    photo = UnlabeledImages([file])
    for share in (2, 4):
        within = size[0] // share, size[1] // share
        ways = {
            OURS: ResizedImages(photo, within, draft=True),
            "draft=False": ResizedImages(photo, within),
        }
        title = f"a JPEG of {size[0]} x {size[1]}, fitted into {within[0]} x {within[1]}, draft=True"
        yield alternate(title, {name: partial(images.__getitem__, 0) for name, images in ways.items()}, rounds=rounds)
