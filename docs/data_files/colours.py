from pathlib import Path

from hrda_lib.data import Folders, StoredColours

ROOT = Path("data")
# black is ignored
COLOURS = {(70, 130, 180): 0, (128, 64, 128): 1, (0, 0, 142): 2, (0, 0, 0): 255}

source = Folders(ROOT / "source", read_label=StoredColours(COLOURS))
target = Folders(ROOT / "target").unlabeled()
validation = Folders(ROOT / "validation", read_label=StoredColours(COLOURS))
names = ["sky", "road", "car"]
