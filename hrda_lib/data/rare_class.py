"""Rare-class sampling: which image to show next."""

import torch
from torch import Tensor

from hrda_lib._checks import check_finite, check_generator, is_number, readable


class RareClasses:
    r"""Draw a class, rare ones more often, then an image that shows enough of it.

    .. math::
        P(c) \propto \exp((1 - f_c) / T)

    with :math:`f_c` the share of class c among all counted pixels (DAFormer, arXiv 2111.14887, section 3.3). A class
    that no image shows enough of is never drawn.

    Args:
        counts: (N, C) pixels of each class in each image (:func:`count_labels`, cut to the classes).
        temperature: T, positive; the larger, the more even.
        min_pixels: an image is drawn for a class if it has more pixels of it, at the resolution of the counts.

    ``.probabilities`` is P, (C,) float64.

    Raises:
        ValueError: a setting is out of its range, or no image has more than ``min_pixels`` of any class.

    Example:
        >>> import torch
        >>> from hrda_lib.data import RareClasses
        >>> rare = RareClasses(torch.tensor([[9000, 0], [4000, 5000]]), temperature=0.1)
        >>> [round(p, 3) for p in rare.probabilities.tolist()]
        [0.012, 0.988]
        >>> index, label = rare.draw(torch.Generator().manual_seed(0))
        >>> index, label
        (1, 1)
    """

    def __init__(self, counts: Tensor, *, temperature: float = 0.01, min_pixels: int = 3000) -> None:
        if counts.dim() != 2 or 0 in counts.shape:
            raise ValueError(f"counts must be (images, classes) and not empty, got {tuple(counts.shape)}")
        if counts.shape[1] > 255:
            raise ValueError(f"counts must be cut to the classes, counts[:, :num_classes], got {tuple(counts.shape)}")
        check_finite("counts", counts)
        if readable(counts) and counts.min() < 0:
            raise ValueError(f"counts must not be negative, got {counts.min().item()}")
        if not (is_number(temperature) and is_number(min_pixels)) or not temperature > 0 or min_pixels < 0:
            raise ValueError(
                f"temperature must be positive and min_pixels not negative, got {temperature}, {min_pixels}"
            )
        self.min_pixels, self.num_images = min_pixels, len(counts)
        self._images = [(column > min_pixels).nonzero().flatten() for column in counts.T]
        shown = torch.tensor([len(images) > 0 for images in self._images])
        if not shown.any():
            raise ValueError(
                f"no image has more than min_pixels={min_pixels} pixels of any class; choose a smaller number"
            )
        shares = counts.sum(dim=0).double() / counts.sum()
        self.probabilities = torch.where(shown, (1 - shares) / temperature, -torch.inf).softmax(dim=0)
        if not self.probabilities.isfinite().all():
            raise ValueError(
                f"temperature {temperature} is too small, or counts are too large: no probability is finite"
            )

    def draw(self, generator: torch.Generator | None = None) -> tuple[int, int]:
        """A class, then an image that shows more than ``min_pixels`` of it.

        Args:
            generator: a CPU generator; None: torch's default.

        Returns:
            (image index, class), both from 0.

        Raises:
            ValueError: the generator is not on the CPU.
        """
        check_generator(generator)
        label = int(torch.multinomial(self.probabilities, 1, generator=generator))
        images = self._images[label]
        return int(images[torch.randint(len(images), (), generator=generator)]), label
