"""What picture files carry besides pixels: orientations, formats, sizes, names that steer a terminal."""

import pickle
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from trees import SIZE, every_id, filled, gta, pixels, save_palette, saved, synthia, write

from hrda_lib.data import (
    Folders,
    Gta,
    LabeledFiles,
    ListFile,
    SourceCrops,
    StoredColours,
    Synthia,
    UnlabeledImages,
    check_sizes,
    count_labels,
    image_files,
    open_dataset,
    open_labeled_splits,
    pictures,
)
from hrda_lib.data.pictures import open_image, picture_size, read_image

ORIENTATIONS = range(1, 9)


def turned(file: Path, orientation: int, array: np.ndarray | None = None, **settings: Any) -> Path:
    """A picture with an EXIF orientation, as a camera writes it."""
    exif = PIL.Image.Exif()
    exif[274] = orientation
    picture = PIL.Image.fromarray(pixels(0) if array is None else array)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, exif=exif, **settings)
    return file


def blocks() -> np.ndarray:
    """Four colours, one a corner, which JPEG keeps well."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24] = (250, 10, 10), (10, 250, 10), (10, 10, 250)
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_photos_stand_upright_as_opencv_shows_them(tmp_path: Path, orientation: int) -> None:
    file = turned(tmp_path / "a.jpg", orientation, blocks(), quality=95)
    expected = cv2.imread(str(file))[..., ::-1].astype(int)
    got = read_image(file).permute(1, 2, 0).numpy().astype(int)
    assert got.shape == expected.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    assert np.abs(got - expected).max() < 12
    assert picture_size(file) == expected.shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "tiff"])
def test_other_formats_stand_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    file = turned(tmp_path / f"a.{ending}", orientation, **({"lossless": True} if ending == "webp" else {}))
    with PIL.Image.open(tmp_path / f"a.{ending}") as picture:
        expected = np.asarray(PIL.ImageOps.exif_transpose(picture.convert("RGB") if ending == "webp" else picture))
    assert np.array_equal(read_image(file).permute(1, 2, 0), expected)
    assert picture_size(file) == expected.shape[:2]


def test_an_upright_picture_and_its_label_fit(tmp_path: Path) -> None:
    root = write(tmp_path, 2)
    with PIL.Image.open(root / "images" / "1.png") as picture:
        stored = np.asarray(picture.transpose(PIL.Image.Transpose.ROTATE_90))
    turned(root / "images" / "1.png", 6, stored)
    data = Folders(root)
    assert torch.equal(data[1].image[0], data[1].label)
    assert torch.equal(data.unlabeled()[1].image, data[1].image)
    check_sizes(data)


def test_exif_that_says_nothing(tmp_path: Path) -> None:
    for value in (0, 9, 65535):
        assert torch.equal(read_image(turned(tmp_path / "a.png", value)), torch.from_numpy(pixels(0)).permute(2, 0, 1))
    PIL.Image.fromarray(pixels(0)).save(tmp_path / "b.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff broken")
    assert picture_size(tmp_path / "b.png") == SIZE
    assert read_image(tmp_path / "b.png").shape == (3, *SIZE)


def at_the_end(file: Path) -> None:
    """EXIF of a PNG behind its pixels, where a header does not show it."""
    data = file.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    file.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])


def test_exif_behind_the_pixels(tmp_path: Path) -> None:
    root = write(tmp_path, 1)
    with PIL.Image.open(root / "images" / "0.png") as picture:
        stored = np.asarray(picture.transpose(PIL.Image.Transpose.ROTATE_90))
    at_the_end(turned(root / "images" / "0.png", 6, stored))
    assert read_image(root / "images" / "0.png").shape == (3, 24, 32)
    check_sizes(Folders(root))
    at_the_end(turned(root / "labels" / "0.png", 3, filled(0, (24, 32))))
    with pytest.raises(ValueError, match=r"labels/0\.png: a label must have no EXIF orientation, got 3"):
        Folders(root).count(0)


def deep_and_turned(root: Path) -> Synthia:
    synthia(root)
    file = root / "GT" / "LABELS" / "0000000.png"
    data = file.read_bytes()
    content = b"eXIf" + b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    file.write_bytes(data[:33] + chunk + data[33:])
    return Synthia(root)


TURNED: dict[str, Callable[[Path], Any]] = {
    "ids": lambda p: Folders(write(p, 1) and turned(p / "labels/0.png", 3, filled(0, (24, 32))).parents[1])[0],
    "ids, counted": lambda p: count_labels(
        Folders(write(p, 1) and turned(p / "labels/0.png", 8, filled(0, (24, 32))).parents[1])
    ),
    "ids in a TIFF": lambda p: LabeledFiles([p], [turned(p / "a.tif", 6, filled(1))], ["a"]).label(0),
    "ids, sizes": lambda p: check_sizes(
        Folders(write(p, 1) and turned(p / "labels/0.png", 3, filled(0, (24, 32))).parents[1])
    ),
    "colours": lambda p: StoredColours({(0, 0, 0): 0})(turned(p / "a.png", 2, np.zeros((*SIZE, 3), np.uint8))),
    "GTA": lambda p: Gta(gta(p) and turned(p / "labels/00001.png", 5, filled(7)).parents[1]).label(0),
    "SYNTHIA": lambda p: deep_and_turned(p).label(0),
}


@pytest.mark.parametrize("case", TURNED)
def test_labels_with_an_orientation_are_refused(case: str, tmp_path: Path) -> None:
    text = r"\.(png|tif): a label must have no EXIF orientation, got \d: .*; write it upright and without EXIF"
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}.*{text}"):
        TURNED[case](tmp_path)


# Formats


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for name, content in {
        "a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "b.jpg": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, 90, 0, 0, 0, 0) + b"%!PS-Adobe-3.0 EPSF-3.0\n" * 4,
        "c.tif": b"%PDF-1.4\n",
        "d.webp": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "e.bmp": b"\xd7\xcd\xc6\x9a" + bytes(40),
    }.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, open_image, StoredColours({(0, 0, 0): 0})):
            with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image$"):
                read(tmp_path / name)
        assert picture_size(tmp_path / name) is None


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.gif", "a.jp2"])
def test_plain_pictures_are_read_as_pillow_does(tmp_path: Path, name: str) -> None:
    PIL.Image.fromarray(pixels(0)).save(tmp_path / name)
    with PIL.Image.open(tmp_path / name) as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), expected)


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    PIL.Image.fromarray(pixels(0)).save(tmp_path / "a.jpg", format="PNG")
    assert torch.equal(read_image(tmp_path / "a.jpg"), torch.from_numpy(pixels(0)).permute(2, 0, 1))


# Large pictures


LARGE: dict[str, Callable[[Path, int | None], Any]] = {
    "folders": lambda p, n: Folders(p / "a", max_pixels=n)[0].image,
    "their labels": lambda p, n: Folders(p / "a", max_pixels=n).count(0),
    "colours": lambda p, n: Folders(p / "a", read_label=StoredColours({(0, 0, 0): 0}), max_pixels=n).label(0),
    "colours alone": lambda p, n: StoredColours({(0, 0, 0): 0}, max_pixels=n)(p / "a/labels/0.png"),
    "a target": lambda p, n: Folders(p / "a", max_pixels=n).unlabeled()[0].image,
    "images": lambda p, n: UnlabeledImages([p / "a/images/0.png"], max_pixels=n)[0].image,
    "other images": lambda p, n: UnlabeledImages([], max_pixels=n).with_files([p / "a/images/0.png"])[0].image,
    "a list": lambda p, n: ListFile(p / "list.txt", max_pixels=n)[0].image,
    "files": lambda p, n: LabeledFiles([p / "a/images/0.png"], [p / "a/labels/0.png"], ["0"], max_pixels=n)[0],
    "opened": lambda p, n: open_dataset(p / "a", max_pixels=n)[0],
    "opened, a list": lambda p, n: open_dataset(p / "list.txt", max_pixels=n)[0],
    "all splits": lambda p, n: open_labeled_splits(p / "a", max_pixels=n)["folders"][0],
    "GTA": lambda p, n: Gta(p / "gta", max_pixels=n)[0],
    "GTA's labels": lambda p, n: Gta(p / "gta", max_pixels=n).count(0),
    "SYNTHIA's labels": lambda p, n: Synthia(p / "synthia", max_pixels=n).label(0),
    "headers": lambda p, n: check_sizes(Folders(p / "a", max_pixels=n)),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_pictures_are_let_in_by_name_only(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 1)
    gta(tmp_path / "gta")
    synthia(tmp_path / "synthia")
    (tmp_path / "list.txt").write_text("a/images/0.png\ta/labels/0.png\n")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = r"^/.*\.png: \d+ x \d+ pixels are more than max_pixels=200; a larger one lets it in .*, or cut it into"
        with pytest.raises(ValueError, match=text):
            LARGE[case](tmp_path, None)
        with pytest.raises(ValueError, match="more than max_pixels=100;"):
            LARGE[case](tmp_path, 100)
        LARGE[case](tmp_path, 1000)
        assert PIL.Image.MAX_IMAGE_PIXELS == 200
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
        LARGE[case](tmp_path, None)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 50_000, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    for read in (read_image, picture_size, open_image):
        with pytest.raises(ValueError, match=r"a\.png: 50000 x 60000 pixels are more than max_pixels=89478485;"):
            read(tmp_path / "a.png")


def test_the_own_limit_of_webp_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(pixels(0)).save(tmp_path / "a.webp")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError, match=r"a\.webp: .*Larger ones: PIL\.Image\.MAX_IMAGE_PIXELS, another format, or tiles"
    ):
        read_image(tmp_path / "a.webp", 10_000)


LIMITED: list[Callable[[Any], Any]] = [
    lambda limit: UnlabeledImages([], max_pixels=limit),
    lambda limit: LabeledFiles([], [], [], max_pixels=limit),
    lambda limit: StoredColours({(0, 0, 0): 0}, max_pixels=limit),
]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "9"])
@pytest.mark.parametrize("build", LIMITED)
def test_limits_that_let_nothing_in(build: Callable[[Any], Any], limit: Any) -> None:
    with pytest.raises(ValueError, match=r"^max_pixels must be a positive number of pixels, or None for Pillow's, got"):
        build(limit)


# Sizes by headers


def test_sizes_are_compared_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Folders(write(tmp_path, 4))
    seen = list[int]()

    def progress(indices: Any) -> Any:
        for index in indices:
            seen.append(index)
            yield index

    saved(tmp_path / "labels" / "1.png", filled(0, (24, 30)))
    saved(tmp_path / "labels" / "3.png", filled(0, (32, 24)))
    (tmp_path / "images" / "2.png").write_bytes(b"broken: found when it is read")
    real = pictures.open_image
    monkeypatch.setattr(
        pictures, "open_image", lambda file, *_: pytest.fail("decoded") if "1" in file.name else real(file)
    )
    text = "labels/1.png: label must have its image's size (24, 32), got (24, 30) (2 of 4 images have such a fault)"
    with pytest.raises(ValueError, match=f"{re.escape(text)}$"):
        check_sizes(data, progress)
    assert seen == [0, 1, 2, 3]


# Names


NAMES = ["a\x1b[31mred", "two\nlines", "\x07bell", "right\u202eleft", "delete\x7f", "tab\tbed"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_steer_a_terminal(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / name, 2)
    for folder in ("images", "labels"):
        (root / folder / "1.png").rename(root / folder / f"{name}.png")
    (root / "images" / f"{name}.gif").touch()
    data = Folders(root)
    at = data.names.index(name)
    messages = [record.getMessage() for record in caplog.records]
    for spoil in (lambda file: file.write_bytes(b""), Path.unlink):
        for folder in ("labels", "images"):
            spoil(root / folder / f"{name}.png")
        for read in (
            lambda: data[at],
            lambda: data.label(at),
            lambda: count_labels(data),
            lambda: data.unlabeled()[at],
        ):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                read()
            messages.append(str(caught.value))
    for wrong in (lambda: Gta(root / "none"), lambda: open_dataset(root / "labels"), lambda: image_files(root / "x")):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            wrong()
        messages.append(str(caught.value))
    count_labels(data, on_error="skip")
    messages += [record.getMessage() for record in caplog.records]
    assert len(messages) > 12
    for message in messages:
        assert message.isprintable()
        assert name not in message


def test_ordinary_names_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("größe 1", "снимок", "写真", "Aufnahme\u202f9.00"):
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/{name}: no such file$"):
            read_image(tmp_path / name)


def test_texts_of_readers_are_made_harmless(tmp_path: Path) -> None:
    def read(file: Path) -> torch.Tensor:
        raise RuntimeError("bad \x1b[2J band")

    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match=r"a: cannot be read \(RuntimeError: bad \\x1b\[2J band\)$"):
        UnlabeledImages([tmp_path / "a"], read_image=read)[0]


# Values and kinds


def by_name(file: Path) -> torch.Tensor:
    return {
        "nan": torch.full((3, 4, 4), torch.nan),
        "inf": torch.full((3, 4, 4), -torch.inf),
        "four": torch.zeros(4, 4, 4),
        "bytes": torch.zeros(3, 4, 4, dtype=torch.uint8),
    }.get(file.stem, torch.zeros(3, 4, 4))


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_images_that_are_not_finite(name: str, tmp_path: Path) -> None:
    data = UnlabeledImages([tmp_path / "a", tmp_path / name], read_image=by_name)
    assert data[0].image.shape == (3, 4, 4)
    with pytest.raises(
        ValueError, match=rf"/{name}: image holds values that are not finite; let read_image replace them"
    ):
        data[1]


@pytest.mark.parametrize(("name", "text"), [("four", "got 4 of torch.float32"), ("bytes", "got 3 of torch.uint8")])
def test_all_images_of_a_set_are_of_one_kind(name: str, text: str, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / name]
    data = UnlabeledImages(files, read_image=by_name)
    labeled = LabeledFiles(
        files,
        [saved(tmp_path / "l.png", filled(0, (4, 4))) or tmp_path / "l.png"] * 3,
        ["a", "b", "c"],
        read_image=by_name,
    )
    for images in (data, labeled):
        assert images[1].image.shape == (3, 4, 4)
        message = rf"/{name}: image must have 3 channels of torch\.float32, as .*/b in the same data set, {text}$"
        with pytest.raises(ValueError, match=message):
            images[2]
        assert images[0].image.shape == (3, 4, 4)


def message_of(read: Callable[[Path], Any], file: Path) -> str:
    """Of the ValueError, or nothing."""
    try:
        read(file)
    except ValueError as error:
        return str(error)
    return f"{file}: "


def test_a_bad_picture_is_never_a_traceback(tmp_path: Path) -> None:
    """Bits flipped and ends cut off, of every format: a picture or a ValueError that names the file."""
    random, tried = np.random.default_rng(0), 0
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.gif", "a.jp2"):
        file = turned(tmp_path / name, 6) if name[2:] in ("png", "jpg", "webp", "tif") else tmp_path / name
        if not file.exists():
            PIL.Image.fromarray(pixels(0)).save(file)
        good = file.read_bytes()
        for _ in range(60):
            bad = bytearray(good[: random.integers(1, len(good))] if random.random() < 0.3 else good)
            for place in random.integers(min(len(bad), 200), size=3):
                bad[place] = random.integers(256)
            file.write_bytes(bad)
            for read in (read_image, picture_size, StoredColours({(0, 0, 0): 0})):
                tried += 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert message_of(read, file).startswith(f"{file}: ")
    assert tried == 8 * 60 * 3


def test_workers_that_are_spawned_read_the_same(tmp_path: Path) -> None:
    save_palette(write(tmp_path, 2) / "labels" / "0.png", every_id(3, 0), [(i, 0, 0) for i in range(4)])
    data = Folders(tmp_path, max_pixels=10**6)
    sent = pickle.loads(pickle.dumps(data))
    assert torch.equal(sent.label(0), data.label(0))
    assert len(SourceCrops(sent, 8, length=3)) == 3


def test_pictures_are_not_imported_before_one_is_read() -> None:
    code = "import sys, hrda_lib.data.pictures; print([m for m in sys.modules if m.startswith('PIL')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
