"""Numbers from the authors' released code (tests/data), and the rule that makes their inputs and weights.

Every input is a function of (seed, name, shape): uniform draws of numpy's PCG64, seeded by the seed and the CRC-32 of
the name. Settings and scalars are in meta.json, tensors in vectors.safetensors, entry names and shapes in
checkpoint_entries.json; they were computed once with the released HRDA code, a MiT-B0 and a DAFormer head.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
META = json.loads((DATA / "meta.json").read_text())
ENTRIES = {name: tuple(shape) for name, shape in json.loads((DATA / "checkpoint_entries.json").read_text()).items()}
VECTORS = load_file(DATA / "vectors.safetensors")


def draw(seed: int, name: str, *shape: int) -> np.ndarray:
    """Uniform in [0, 1), float64."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])).random(shape)


def weight(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a checkpoint entry: centred draws, scaled by what the entry is."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    centred = 2 * draw(seed, name, *shape) - 1
    if name.endswith("running_mean"):
        value = 0.3 * centred
    elif name.endswith("running_var"):
        value = 1 + 0.5 * centred
    elif len(shape) > 1:  # a convolution or a linear layer, by its fan-in
        value = (9 if "conv_seg" in name else 2.7) * centred / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("bias"):
        value = 0.15 * centred
    else:  # the scale of a norm
        value = 1 + 0.15 * centred
    return torch.from_numpy(value.astype(np.float32))


def checkpoint(seed: int, entries: dict[str, tuple[int, ...]] = ENTRIES) -> dict[str, Tensor]:
    """All entries of a published file."""
    return {name: weight(seed, name, shape) for name, shape in entries.items()}


def image(seed: int, name: str, count: int, height: int, width: int) -> Tensor:
    """Normalised images: flat blocks of 16 pixels in [-1.5, 1.5) under noise of +-0.5."""
    blocks = 3 * draw(seed, f"{name}.blocks", count, 3, -(-height // 16), -(-width // 16)) - 1.5
    flat = np.kron(blocks, np.ones((16, 16)))[:, :, :height, :width]
    noise = draw(seed, f"{name}.noise", count, 3, height, width) - 0.5
    return torch.from_numpy((flat + noise).astype(np.float32))


def label(seed: int, name: str, count: int, height: int, width: int, classes: int) -> Tensor:
    """Train ids: regions of 64 pixels under cells of 8 pixels, objects (12 %) or ignored (4 %); 4 rows are ignored."""

    def cells(what: str, side: int) -> np.ndarray:
        grid = draw(seed, f"{name}.{what}", count, -(-height // side), -(-width // side))
        return np.kron(grid, np.ones((side, side)))[:, :height, :width]

    ids, where = np.floor(cells("stuff", 64) * classes), cells("where", 8)
    ids = np.where(where < 0.12, np.floor(cells("things", 8) * classes), ids)
    ids[(where > 0.12) & (where < 0.16)] = 255
    ids[:, :4] = 255
    return torch.from_numpy(ids.astype(np.int64))


def relative_error(got: object, want: object) -> float:
    """||got - want|| / ||want||."""
    got, want = (torch.as_tensor(x, dtype=torch.float64) for x in (got, want))
    return float((got - want).norm() / want.norm())
