"""Images and labels of different size, found before training."""

from collections.abc import Callable, Iterable

from hrda_lib.data.samples import LabeledImages, check_size_of


def check_sizes(dataset: LabeledImages, progress: Callable[[Iterable[int]], Iterable[int]] | None = None) -> None:
    """Compare the size of every image with that of its label, by the headers of the files: nothing is decoded.

    Left out are files that readers of one's own read, data sets without a method ``check_size(index)``, and what is
    missing or broken: it is named when it is read.

    Args:
        dataset: labelled images.
        progress: wraps the range of images, as ``tqdm`` does; None: nothing.

    Raises:
        ValueError: sizes differ, pictures are too large, or labels have an EXIF orientation; names the first,
            and says how many there are.
    """
    first, count = "", 0
    for index in progress(range(len(dataset))) if progress else range(len(dataset)):
        try:
            check_size_of(dataset, index)
        except ValueError as error:
            first, count = first or str(error), count + 1
    if count:
        raise ValueError(first + (f" ({count} of {len(dataset)} images have such a fault)" if count > 1 else ""))
