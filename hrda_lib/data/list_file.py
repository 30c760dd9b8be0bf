"""Labelled images named by a list."""

from collections.abc import Sequence
from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.readers import Reader, label_reader


class ListFile(LabeledFiles):
    """A text file of lines ``image<TAB>label``; relative paths start at the list's folder, empty lines are left out.

    Labels are opened when they are asked for, never before, and a list of images alone is a target:
    ``ListFile(file).unlabeled()``. Samples have the name of their image, as it stands in the list.

    Args:
        file: the list, in UTF-8.
        ignore: class ids that become 255.
        read_image, read_label: readers of one's own, as in :class:`Folders`.

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
    ) -> None:
        self.file, self.ignore = Path(file), list(ignore)
        try:
            lines = self.file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.file}: cannot be read as a list ({error})") from None
        images, labels, names = [], [], []
        for number, line in enumerate(lines, start=1):
            parts = [part.strip() for part in line.split("\t")] if line.strip() else []
            if not parts:
                continue
            if len(parts) > 2 or not all(parts):
                raise ValueError(
                    f"{self.file}, line {number}: image<TAB>label, or an image alone, is expected: {line!r}"
                )
            images.append(self.file.parent / parts[0])
            has_label = len(parts) == 2
            labels.append(self.file.parent / parts[1] if has_label else Path(f"{self.file}: no label for {parts[0]}"))
            names.append(parts[0])
        if not images:
            raise ValueError(f"{self.file}: names no image")
        reader, settings = label_reader(self.ignore, read_label)
        super().__init__(images, labels, names, read_image=read_image, read_label=reader, settings=settings)
