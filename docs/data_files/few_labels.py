from pathlib import Path

from hrda_lib.data import Concatenated, Folders

ROOT = Path("data")

few = Folders(ROOT / "few")  # labelled images of the target domain
source = Concatenated([Folders(ROOT / "source"), few])
target = Folders(ROOT / "target").unlabeled()
validation = Folders(ROOT / "validation")  # others, never trained on
names = ["sky", "road", "car"]
