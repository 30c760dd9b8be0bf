"""Half of a labelled folder as a source, the other half as another camera would show it: a target with known labels.

    python benchmarks/other_camera.py ROOT OUT              ROOT/images and ROOT/labels; OUT/source and OUT/target

Darker, redder, with a vignette, 1.25 times as large, less sharp, and with noise, by chances of its own for each image.
It is what docs/self_training_hurts.md measures on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    files = sorted((options.root / "images").glob("*.png"))
    generator = np.random.default_rng(0)
    for index, file in enumerate(files):
        image, label = Image.open(file).convert("RGB"), Image.open(options.root / "labels" / file.name)
        part = options.out / ("source" if index < len(files) // 2 else "target")
        if part.name == "target":
            image = seen_by_another(image, generator)
            label = label.resize(image.size, Image.Resampling.NEAREST)
        for kind, picture in (("images", image), ("labels", label)):
            (part / kind).mkdir(parents=True, exist_ok=True)
            picture.save(part / kind / file.name)
    return 0


def seen_by_another(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gamma, gains, vignette; then larger, blurred and noisy."""
    light = np.asarray(image, np.float32) / 255
    gamma, gains = generator.uniform(1.3, 1.7), np.array([0.8, 0.7, 1.3]) * generator.uniform(0.9, 1.1, 3)
    light = light**gamma * gains
    height, width = light.shape[:2]
    row, column = np.mgrid[:height, :width]
    top, left = generator.uniform(0.35, 0.65, 2)
    light *= (1.25 - 0.9 * np.hypot(row / height - top, column / width - left))[..., None]
    larger = Image.fromarray((light.clip(0, 1) * 255).astype(np.uint8)).resize(
        (int(1.25 * width), int(1.25 * height)), Image.Resampling.BICUBIC
    )
    soft = np.asarray(larger.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    return Image.fromarray((soft + generator.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
