from pathlib import Path

from hrda_lib.data import Folders, Relabeled

ROOT = Path("data")

# every other id is ignored
source = Relabeled(Folders(ROOT / "source"), {23: 0, 7: 1, 8: 1, 26: 2})
target = Folders(ROOT / "target").unlabeled()
validation = Relabeled(Folders(ROOT / "validation"), {10: 0, 0: 1, 13: 2})
names = ["sky", "ground", "car"]
