"""Arrays that are never whole in memory: labels by bands of rows."""

from collections.abc import Iterator
from contextlib import suppress
from os import getpid
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib import CropBox, MultiResSegmenter, SlidingWindowInferer
from support.ending import held, reason
from support.networks import Network, NetworkSpec
from support.plots import Picture, palette
from support.progress import bar

OVERVIEW = 2048  # pixels of its longer side, at most


def mapped(file: Path) -> Picture:
    """(H, W, 3) of a ``.npy`` file, of which only what is used is read.

    Raises:
        ValueError: it holds something else; the message starts with the file.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: cannot be read as an array ({reason(error)})") from None
    shape: tuple[int, ...] = getattr(array, "shape", ())
    kind = getattr(array, "dtype", type(array).__name__)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"{file}: an array must be (H, W, 3) of uint8, got {tuple(shape)} of {kind}")
    picture: Picture = array
    return picture


@torch.inference_mode()
def bands(model: Network, spec: NetworkSpec, file: Path, device: str) -> Iterator[tuple[int, Tensor]]:
    """(first row, labels (rows, W) uint8), as ``predict`` has them by windows of twice the detail's size."""
    rows, columns = mapped(file).shape[:2]

    def read(box: CropBox) -> Tensor:
        array = mapped(file)  # anew each time: pages of a map stay in memory as long as the map does
        part = np.array(array[box.top : box.top + box.height, box.left : box.left + box.width])
        x = spec.feed(torch.from_numpy(part).permute(2, 0, 1)[None], device)
        return pad(x, (0, box.width - x.shape[-1], 0, box.height - x.shape[-2]))

    def logits(x: Tensor) -> Tensor:
        out: Tensor = model(x, detail="windows").logits if isinstance(model, MultiResSegmenter) else model(x)
        return out

    height, width = (-(-side // spec.cell) * spec.cell for side in (rows, columns))
    window = 2 * spec.detail_size[0], 2 * spec.detail_size[1]
    infer = SlidingWindowInferer(
        window, batch_size=1, label_dtype=torch.uint8, progress=lambda calls: bar(calls, file.name, leave=False)
    )
    model.eval()
    for top, labels in infer.stream((height, width), read, logits):
        if top < rows:
            yield top, labels[0, : rows - top, :columns].cpu()


def write_bands(out: Path, model: Network, spec: NetworkSpec, file: Path, device: str) -> Path:
    """``out/NAME.npy`` of class ids, and ``out/NAME_overview.png``, every so many pixels of them in colours.

    Each gets its name when it is complete.
    """
    rows, columns = mapped(file).shape[:2]
    place, step, seen = out / f"{file.stem}.npy", -(-max(rows, columns) // OVERVIEW), []
    part = place.with_name(f"{place.name}.{getpid()}.part")
    try:
        with part.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, columns)}
            np.lib.format.write_array_header_1_0(stream, header)
            for top, labels in bands(model, spec, file, device):
                stream.write(labels.numpy().tobytes())  # no map, whose pages would fill the memory
                seen.append(labels[-top % step :: step, ::step].clone())
        overview = Image.fromarray(torch.cat(seen).numpy())
        overview.putpalette(palette(spec.classes).tobytes())
        with held():
            part.replace(place)
            overview.save(out / f"{file.stem}_overview.png")
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return place
