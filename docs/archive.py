"""The folder of examples as one file to download; written by the docs build."""

import zipfile
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KINDS = (".py", ".toml", ".txt")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that the same files give the same archive


def write_archive(file: Path) -> None:
    """``examples/...``, without what runs left there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(EXAMPLES.rglob("*")):
            if path.suffix in KINDS and "runs" not in path.parts:
                name = path.relative_to(EXAMPLES.parent).as_posix()
                info = zipfile.ZipInfo(name, LONG_AGO)
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
