"""How picture files are opened."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import PIL.Image  # at run time where a file is opened


def read_image(file: Path) -> Tensor:
    """(3, H, W) uint8, in memory pixel by pixel (channels last); grey and palette images become RGB.

    Raises:
        ValueError: the file is missing or broken, or holds more than 8 bits a channel.
    """
    with open_image(file) as image:
        deep = ";16" in image.info["raw mode"]  # which Pillow cuts to 8 bits
        if deep or image.mode not in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK"):
            kind = image.info["raw mode"] if deep else image.mode
            raise ValueError(f"{file}: image must have 8 bits a channel, got mode {kind}; convert it")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def open_image(file: Path) -> "PIL.Image.Image":
    """The decoded picture.

    Raises:
        ValueError: the file is missing or broken.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from None
    try:
        layout = image.tile[0][3] if image.tile else ""
        image.info["raw mode"] = str(layout[0] if isinstance(layout, tuple) else layout or "")
        image.load()
    except (OSError, SyntaxError) as error:
        image.close()
        raise _unreadable(file, error) from None
    if image.mode == "P" and not image.getpalette():
        image.close()
        raise ValueError(f"{file}: a palette PNG without its palette; write it again, with one or as grey levels")
    return image


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: cannot be read as an image ({error})")
