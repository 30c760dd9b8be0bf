"""Segment images of any size with the network of a run.

    python examples/predict.py RUN INPUT... --out DIR
    python examples/predict.py RUN INPUT... --out DIR --ids labelIds --zip          for a benchmark's server
    python examples/predict.py RUN INPUT... --out DIR --server dark_zurich --zip    for that of Dark Zurich

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, an INPUT an image or a folder of images. For each
image, DIR gets NAME.png (class ids under a palette of their colours, or what --ids says) and NAME_overlay.png, whose
colours legend.png names. A file that cannot be read, or is too large for the memory, is reported, the rest go on, and
the exit status is 1. What is too large goes in as NAME.npy, an array (H, W, 3) of uint8, which is never whole in
memory: it is read, and DIR/NAME.npy of class ids is written, by bands of rows, with NAME_overview.png, every so many
pixels of it. Images that are no RGB pictures are read as the target of the FILE.py that the run was trained with: give
it by --data, for a run never says what code to execute.
"""

from support.ending import held, printable, reason, run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hrda_lib import MultiResSegmenter
from hrda_lib.data import CITYSCAPES, image_files
from support.command_line import ALONE, add_device, add_max_pixels, one_of, options_of, read_running
from support.data_file import add_read_as, check_readable, open_as_trained
from support.huge import write_bands
from support.networks import Network, NetworkSpec, heads
from support.plots import Picture, display, draw_legend, paint, palette
from support.processes import together
from support.progress import bar
from support.run_folder import WEIGHTS, load

IDS = {
    "labelTrainIds": np.arange(256, dtype=np.uint8),
    "labelIds": np.array([entry.id for entry in CITYSCAPES], np.uint8),
    "color": np.array([entry.colour for entry in CITYSCAPES], np.uint8),
}
LEGEND = "legend.png"
DARK_ZURICH = ("labelTrainIds", "labelTrainIds_invalid", "confidence")


def predict(model: Network, x: Tensor, *, flip: bool) -> Tensor:
    """Labels (B, H, W); ``flip`` averages the probabilities with those of the mirrored image."""
    if not flip:
        return model.predict(x, output="labels", label_dtype=torch.uint8)
    probs = model.predict(x, output="probs") + model.predict(x.flip(-1), output="probs").flip(-1)
    return probs.argmax(dim=1).byte()


def write_dark_zurich(place: Path, model: Network, x: Tensor, labels: Tensor, *, flip: bool) -> None:
    """What its server takes: train ids, the same with invalid pixels (none is called so), confidence in 16 bits."""
    probs = model.predict(x, output="probs")
    if flip:
        probs = (probs + model.predict(x.flip(-1), output="probs").flip(-1)) / 2
    confidence = (65535 * probs[0].amax(dim=0).double()).round().clamp(0, 65535).cpu().numpy().astype(np.uint16)
    for folder, written in zip(DARK_ZURICH, (labels.numpy(), labels.numpy(), confidence), strict=True):
        (place.parent / folder).mkdir(exist_ok=True)
        Image.fromarray(written).save(place.parent / folder / f"{place.name}.png")


def is_array(file: Path, any_ending: bool) -> bool:
    """Whether a file is predicted by bands; a reader of one's own takes any."""
    return file.suffix == ".npy" and not any_ending


def find(inputs: Sequence[Path], out: Path, *, any_ending: bool) -> list[Path]:
    """Image files of all inputs; results must overwrite neither an input nor each other."""
    files = [
        file for path in inputs for file in (image_files(path, any_ending=any_ending) if path.is_dir() else [path])
    ]
    taken = {os.path.realpath(file) for file in (*files, out / LEGEND)}
    for file in files:
        array = is_array(file, any_ending)
        endings = (".npy", "_overview.png") if array else (".png", "_overlay.png", "_attention.png")
        results = {os.path.realpath(out / f"{file.stem}{ending}") for ending in endings}
        if results & taken:
            raise ValueError(f"{file}: its results would overwrite an input or another result; choose another --out")
        taken |= results
    return files


def label_picture(labels: Tensor, spec: NetworkSpec, ids: str | None) -> Image.Image:
    """What NAME.png holds: ids under a palette of their colours, or what a server wants."""
    if ids:
        return Image.fromarray(IDS[ids][labels.numpy()])
    picture = Image.fromarray(labels.numpy())
    picture.putpalette(palette(spec.classes).tobytes())
    return picture


def overlay(image: Tensor, labels: Tensor, spec: NetworkSpec, *, alpha: float = 0.5, contours: bool = False) -> Picture:
    """Class colours, ``alpha`` of them, over an image; ``contours``: with white lines in between.

    Of a dark image less is taken away, down to nothing at dusk, so that it is never darker than it was.
    """
    seen = display(image)
    kept = min((1 - alpha) * max(128 / max(seen.mean(), 1), 1), 1)
    picture: Picture = (kept * seen + alpha * paint(labels, spec.classes)).clip(0, 255).astype(np.uint8)
    if contours:
        picture[borders(labels).numpy()] = 255
    return picture


def borders(labels: Tensor) -> Tensor:
    """(H, W) pixels beside, above or below one of another class."""
    edges = torch.zeros_like(labels, dtype=torch.bool)
    for axis, length in enumerate(labels.shape):
        places = [(axis, start, length - 1) for start in (0, 1)]
        first, second = (labels.narrow(*place) for place in places)
        for place in places:
            edges.narrow(*place).logical_or_(first != second)
    return edges


def problem(error: Exception, file: Path) -> str:
    """What is wrong with a file; torch says much about memory, and Python nothing."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return "too large for the memory; make it smaller, or cut it"
    return reason(error).removeprefix(f"{file}: ")


def pack(archive: Path, files: Sequence[Path], folders: Sequence[str]) -> None:
    """A ZIP file of results, and of those of the same names in folders beside them."""
    with zipfile.ZipFile(archive, "w") as opened:
        for folder in folders:
            for file in files:
                opened.write(file.parent / folder / file.name, f"{folder}/{file.name}".lstrip("/"))


def write_picture(place: Path, model: Network, spec: NetworkSpec, image: Tensor, options: argparse.Namespace) -> Path:
    """NAME.png and what else is asked for."""
    x = spec.feed(image[None], options.device)
    labels = predict(model, x, flip=options.flip)[0].cpu()
    shown = overlay(image, labels, spec, alpha=options.alpha, contours=options.contours)
    pictures = {"": label_picture(labels, spec, options.ids), "_overlay": Image.fromarray(shown)}
    if options.save_attention:
        paid = 255 * heads(model, x)["attention"][0, 0]
        pictures["_attention"] = Image.fromarray(paid.byte().cpu().numpy())
    if options.server:
        write_dark_zurich(place, model, x, labels, flip=options.flip)
    with held():
        for ending, picture in pictures.items():
            picture.save(f"{place}{ending}.png")
    return Path(f"{place}.png")


def check(options: argparse.Namespace, model: Network, spec: NetworkSpec) -> None:
    """Refuse what does not go together."""
    if (options.ids or options.server) and list(spec.classes) != [entry.name for entry in CITYSCAPES]:
        raise ValueError(
            f"{'--ids' if options.ids else '--server'} is for the 19 classes of Cityscapes, which this run has not"
        )
    if options.save_attention and not isinstance(model, MultiResSegmenter):
        raise ValueError("--save-attention: this network has one scale, and no attention")
    if not 0 <= options.alpha <= 1:
        raise ValueError(f"--alpha must be in [0, 1], got {options.alpha}")
    whole = [name for name in ("ids", "server", "zip", "flip", "save_attention", "contours") if getattr(options, name)]
    for file in options.inputs:
        if whole and is_array(file, bool(options.data)):
            raise ValueError(f"{file}: an array is predicted by bands, without --{whole[0].replace('_', '-')}")


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    model, spec = load(options.run, options.weights)
    check(options, model, spec)
    check_readable([spec], options.data)
    files = find(options.inputs, options.out, any_ending=bool(options.data))
    images = open_as_trained(files, options.data, options.max_pixels)
    running = read_running({**ALONE._asdict(), "device": options.device})
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(options.device)
    done = list[tuple[int, Path]]()
    for i, file in bar(list(enumerate(files))[running.rank :: running.world], "predicting"):
        try:
            if is_array(file, bool(options.data)):
                done.append((i, write_bands(options.out, model, spec, file, options.device)))
            else:
                done.append((i, write_picture(options.out / file.stem, model, spec, images[i].image, options)))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            tqdm.write(printable(f"predict.py: {file}: {problem(error, file)}"), file=sys.stderr)
    done = sorted(together(done, running.group))
    if done and not running.rank:
        draw_legend(options.out / LEGEND, spec.classes)
    if options.zip and not running.rank:
        pack(Path(f"{options.out}.zip"), [file for _, file in done], DARK_ZURICH if options.server else ("",))
    print(f"{options.out}: {len(done)} of {len(files)} images")
    return 0 if len(done) == len(files) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "%(prog)s RUN INPUT... --out DIR [option ...]"
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="images, or folders of them")
    add_read_as(parser)
    add_max_pixels(parser)
    add = options_of(parser, "network").add_argument
    text = f"weights of the run to use ({one_of(WEIGHTS)}; default: %(default)s)"
    add("--weights", choices=WEIGHTS, metavar="WHICH", default="student", help=text)
    add("--flip", action="store_true", help="average with the mirrored image's probabilities (default: off)")
    add_device(parser)
    add_written(parser)
    return parser.parse_args(arguments)


def add_written(parser: argparse.ArgumentParser) -> None:
    """The options that say what is written."""
    add = options_of(parser, "output").add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="folder of the results (no default, it must be given)")
    text = "what NAME.png holds, for the 19 classes of Cityscapes"
    add("--ids", choices=IDS, metavar="WHICH", help=f"{text} ({one_of(list(IDS))}; default: ids under a palette)")
    text = "server whose folders are written, which --zip packs (dark_zurich; default: none)"
    add("--server", choices=("dark_zurich",), metavar="NAME", help=text)
    add("--zip", action="store_true", help="put every NAME.png into DIR.zip too (default: off)")
    text = "share of colours in overlays, in [0, 1] (default: %(default)s)"
    add("--alpha", type=float, metavar="X", default=0.5, help=text)
    add("--contours", action="store_true", help="draw white borders of the classes into overlays (default: off)")
    add("--save-attention", action="store_true", help="write NAME_attention.png, 255 = all detail (default: off)")


if __name__ == "__main__":
    sys.exit(main())
