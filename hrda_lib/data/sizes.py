"""Images and labels of different size, found before training."""

from collections.abc import Callable, Iterable

from hrda_lib.data.samples import LabeledImages, check_size_of


def check_sizes(dataset: LabeledImages, progress: Callable[[Iterable[int]], Iterable[int]] | None = None) -> None:
    """Compare the size of every image with that of its label, by the headers of the files: nothing is decoded.

    Files that readers of one's own read are left out, and data sets without a method ``check_size(index)``.

    Args:
        dataset: labelled images.
        progress: wraps the range of images, as ``tqdm`` does.

    Raises:
        ValueError: sizes differ, or files are missing or broken in their header; names the first, and how many more.

    Example:
        >>> from hrda_lib.data import check_sizes, open_dataset
        >>> check_sizes(open_dataset("no/such/list.txt"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: no/such/list.txt: ...
    """
    first, count = "", 0
    for index in progress(range(len(dataset))) if progress else range(len(dataset)):
        try:
            check_size_of(dataset, index)
        except (ValueError, OSError) as error:
            first, count = first or str(error), count + 1
    if count:
        raise ValueError(first + (f" ({count} of {len(dataset)} images have such a fault)" if count > 1 else ""))
