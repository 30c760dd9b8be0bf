"""Labelled images named by a list."""

from collections.abc import Sequence
from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import is_clutter, log, shown
from hrda_lib.data.readers import Reader, label_reader


class ListFile(LabeledFiles):
    """A text file of lines ``image<TAB>label``; relative paths start at the list's folder, empty lines are left out.

    So are hidden files and what file managers write (``._a.png``, ``Thumbs.db``), with a warning of the log.

    Labels are opened when they are asked for, never before, and a list of images alone is a target:
    ``ListFile(file).unlabeled()``. Samples have the name of their image, as it stands in the list.

    Args:
        file: the list, in UTF-8.
        ignore: class ids that become 255.
        read_image, read_label: readers of one's own, as in :class:`Folders`.
        max_pixels: as of :class:`LabeledFiles`.

    Raises:
        ValueError: there is no such list, it names no image, or a line has more than two parts; on reading, a file is
            missing, broken, of another kind, or of another size than its image, or a reader fails. The message starts
            with the file.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        ignore: Sequence[int] = (),
        read_image: Reader | None = None,
        read_label: Reader | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.file, self.ignore = Path(file), list(ignore)
        try:
            lines = self.file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{shown(self.file)}: cannot be read as a list ({error})") from None
        pairs = [pair for number, line in enumerate(lines, start=1) for pair in self._pairs(number, line)]
        clutter = [name for name, _ in pairs if is_clutter(Path(name))]
        if clutter:
            log.warning("%s: left out: %d hidden files; the first is %s", shown(file), len(clutter), shown(clutter[0]))
        pairs = [(name, label) for name, label in pairs if not is_clutter(Path(name))]
        if not pairs:
            raise ValueError(f"{shown(self.file)}: names no image")
        names = [name for name, _ in pairs]
        folder = self.file.parent
        images, labels = [folder / name for name in names], [label for _, label in pairs]
        reader, settings = label_reader(self.ignore, read_label)
        super().__init__(
            images,
            labels,
            names,
            read_image=read_image,
            read_label=reader,
            settings=settings,
            max_pixels=max_pixels,
        )

    def _pairs(self, number: int, line: str) -> list[tuple[str, Path]]:
        """(image as it stands there, label) of a line, if it names any."""
        parts = [part.strip() for part in line.split("\t")] if line.strip() else []
        if not parts:
            return []
        if len(parts) > 2 or not all(parts):
            raise ValueError(
                f"{shown(self.file)}, line {number}: image<TAB>label, or an image alone, is expected: {line!r}"
            )
        if len(parts) == 2:
            return [(parts[0], self.file.parent / parts[1])]
        return [(parts[0], Path(f"{self.file}: no label for {parts[0]}"))]
