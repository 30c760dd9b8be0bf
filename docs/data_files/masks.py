from pathlib import Path

from hrda_lib.data import Folders, StoredColours

ROOT = Path("data")
MASK = StoredColours({(0, 0, 0): 0, (255, 255, 255): 1})  # stored as 0 and 255

source = Folders(ROOT / "source", read_label=MASK)
target = Folders(ROOT / "target").unlabeled()
names = ["background", "vessel"]
