from pathlib import Path

from hrda_lib.data import ListFile

ROOT = Path("data")

source = ListFile(ROOT / "source.txt", ignore=[3])
target = ListFile(ROOT / "target.txt").unlabeled()
validation = ListFile(ROOT / "validation.txt", ignore=[3])
names = ["sky", "road", "car"]
