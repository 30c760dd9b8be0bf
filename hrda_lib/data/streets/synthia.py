"""SYNTHIA-RAND-CITYSCAPES: synthetic street scenes (Ros et al., CVPR 2016)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import find, shown
from hrda_lib.data.pictures import picture_size
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import train_id_table

# SYNTHIA's ids (sky is 1, building 2, ...) -> train ids; terrain, truck and train do not occur
_IDS = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15}
_IDS |= {20: 16, 12: 17, 11: 18}
_TRAIN_IDS = train_id_table(_IDS)

SYNTHIA_CLASSES = tuple(train_id for train_id in range(19) if train_id not in (9, 14, 16))
"""Train ids of the 16 classes that occur in SYNTHIA, which results are averaged over."""

SYNTHIA_CLASSES_13 = tuple(train_id for train_id in SYNTHIA_CLASSES if train_id not in (3, 4, 5))
"""The 13 of them without wall, fence and pole, which some results are averaged over."""


class Synthia(LabeledFiles):
    """``root/RGB/0000000.png`` with ``root/GT/LABELS/0000000.png``, the 16-bit RGB PNGs as downloaded.

    A pixel's class is the label's first channel, and becomes the train id of
    :data:`~hrda_lib.data.CITYSCAPES`; terrain, truck and train do not occur. Labels need OpenCV
    (``pip install 'hrda_lib[synthia]'``), because Pillow reads such files as zeros.

    Args:
        root: the folder that holds ``RGB`` and ``GT``.
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no image; on reading, a file is missing, broken, of another size than its image, not of
            16 bits and three channels, or zero everywhere. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(self, root: str | Path, *, max_pixels: int | None = None) -> None:
        self.root = Path(root)
        layout = f"{self.root}/RGB/0000000.png with {self.root}/GT/LABELS/0000000.png"
        images = find(self.root / "RGB", "*.png", layout)
        labels = [self.root / "GT" / "LABELS" / file.name for file in images]
        names = [file.stem for file in images]
        super().__init__(
            images,
            labels,
            names,
            read_label=_StoredDeep(max_pixels),
            settings="SYNTHIA",
            layout=layout,
            max_pixels=max_pixels,
        )


class _StoredDeep:
    """Reads RGB PNGs of 16 bits, whose first channel is SYNTHIA's id, as train ids."""

    reads_pictures = True

    def __init__(self, max_pixels: int | None) -> None:
        self.max_pixels = max_pixels

    def __call__(self, file: Path) -> Tensor:
        try:
            import cv2
        except ImportError:
            raise ValueError(
                f"{shown(file)}: SYNTHIA's 16-bit labels need OpenCV: pip install 'hrda_lib[synthia]'"
            ) from None
        size = picture_size(file, self.max_pixels, label=True)  # what is too large or lies on its side is not decoded
        pixels = None if size is None else cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError(f"{shown(file)}: cannot be read as an image")
        if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"{shown(file)}: SYNTHIA's labels are PNGs of three channels of 16 bits, got {pixels.dtype} "
                f"{pixels.shape}"
            )
        ids = pixels[..., 2]  # OpenCV's order is blue, green, red
        if ids.max() > 22:
            raise ValueError(f"{shown(file)}: label {ids.max()} is outside SYNTHIA's 0..22")
        if not ids.any():
            raise ValueError(
                f"{shown(file)}: every pixel is 0 (void); was it written by a program that cannot read 16 bits? "
                "Download it again"
            )
        return torch.from_numpy(_TRAIN_IDS[ids])
