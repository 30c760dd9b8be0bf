"""Patch masks for masked image consistency (MIC)."""

import torch
from torch import Tensor

from hrda_lib._checks import check_counts, check_up_to, pair


def patch_mask(
    size: int | tuple[int, int],
    *,
    batch: int = 1,
    ratio: float = 0.7,
    block: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Hide square blocks of each image at random.

    .. math::
        m_{b} = [u_b > r], \qquad u_b \sim U(0, 1)

    a block of a grid of round(H/block) x round(W/block), stretched to the image (MIC, arXiv 2212.01322, section 3.2).

    Args:
        size: image size (H, W) in pixels.
        batch: number of images B, each with a mask of its own.
        ratio: r, the share that is hidden on average, in [0, 1].
        block: side of a block in pixels.
        generator: random generator; the mask is on its device. None: torch's default, on the CPU.

    Returns:
        (B, 1, H, W) bool, True = kept. Images times it have the mean colour where they are hidden.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib import patch_mask
        >>> patch_mask((4, 4), block=2, ratio=0.5, generator=torch.Generator().manual_seed(1))[0, 0].int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 0, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    height, width = pair("size", size)
    check_up_to(1, ratio=ratio)
    check_counts(block=block, batch=batch)
    rows, columns = max(round(height / block), 1), max(round(width / block), 1)
    device = generator.device if generator is not None else torch.device("cpu")
    kept = torch.rand((batch, 1, rows, columns), generator=generator, device=device) > ratio
    row = torch.arange(height, device=device) * rows // height
    column = torch.arange(width, device=device) * columns // width
    return kept[:, :, row[:, None], column]
