"""The package as a user meets it: built, installed, imported."""

import ast
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torchvision", "timm", "matplotlib", "PIL", "einops", "kornia", "hrda_lib.data")


def python(code: str, executable: Path | str = sys.executable, cwd: Path | None = None) -> str:
    done = subprocess.run([executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_torch_and_nothing_heavier() -> None:
    out = python(f"import sys, torch, hrda_lib; print([m for m in {HEAVY} if m in sys.modules])")
    assert out == "[]"


def test_data_loads_what_reads_images_when_it_reads_one() -> None:
    heavy = ("torchvision", "PIL", "cv2")
    out = python(f"import sys, torch, hrda_lib.data; print([m for m in {heavy} if m in sys.modules])")
    assert out == "[]"


def trees() -> dict[str, ast.Module]:
    """Every module of the package by its name without ``hrda_lib.``."""
    root = ROOT / "hrda_lib"
    parts = {file: file.relative_to(root).with_suffix("").parts for file in sorted(root.rglob("*.py"))}
    return {
        ".".join(names).removesuffix("__init__").removesuffix("."): ast.parse(f.read_text())
        for f, names in parts.items()
    }


def imports() -> dict[str, set[str]]:
    """Of every module, those of ours that it imports."""
    found: dict[str, set[str]] = {}
    for name, tree in trees().items():
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: a relative import"
                # "from hrda_lib import optim" imports a module, the others what lies in one
                whole = node.module == "hrda_lib"
                names |= {f"hrda_lib.{alias.name}" for alias in node.names} if whole else {node.module or ""}
        found[name] = {part.removeprefix("hrda_lib.") for part in names if part.startswith("hrda_lib.")}
    return found


def test_no_circle_of_imports() -> None:
    left = imports()
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_arrows_point_one_way() -> None:
    private, folders = {"_checks", "_modules", "_processes"}, {"models", "data"}
    assembling = {"segmenter", "self_training"}
    graph = {name: needs for name, needs in imports().items() if name}
    top = {name for name in graph if "." not in name} - folders
    primitives = top - private - assembling - {"geometry"}
    assert {"crops", "fusion", "losses", "teacher"} < primitives
    for name, needs in graph.items():
        room = name.split(".")[0]
        if room in folders:  # anything but each other
            allowed = top | {other for other in graph if other.split(".")[0] == room}
        elif name in assembling:
            allowed = private | primitives | {"geometry", "segmenter"}
        elif name in primitives:
            allowed = private | {"geometry"}
        else:
            allowed = {"_checks"} if name == "geometry" else set()
        assert needs <= allowed, f"{name} imports {needs - allowed}"


def test_no_file_has_the_name_of_what_it_defines() -> None:
    for name, tree in trees().items():
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name.split(".")[-1] not in defined, name


def test_functions_are_short() -> None:
    """At most 40 lines of body, docstring apart."""
    functions = [
        (name, node) for name, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]
    lengths = {}
    for name, node in functions:
        first = node.body[1:] if ast.get_docstring(node) is not None else node.body
        lengths[f"{name}.{node.name}"] = (node.end_lineno or 0) - first[0].lineno + 1 if first else 0
    assert {name: lines for name, lines in lengths.items() if lines > 40} == {}


def test_import_adds_few_modules_to_torchs() -> None:
    # a count, because time is noisy: what hrda_lib brings is its own files and nothing else
    code = "import sys, torch; before = set(sys.modules); import hrda_lib; print(*sorted(set(sys.modules) - before))"
    names = {name.split(".")[0].lstrip("_") for name in python(code).split()}
    assert names - sys.stdlib_module_names == {"hrda_lib"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"hrda_lib"}
    assert "hrda_lib/py.typed" in names
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_installs_elsewhere_and_imports(wheel: Path, tmp_path: Path) -> None:
    # torch itself comes from the environment that runs the tests: a .pth file stands for gigabytes of installation
    venv.create(tmp_path / "venv", with_pip=True)
    executable = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([executable, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = Path(python("import sysconfig; print(sysconfig.get_paths()['purelib'])", executable))
    (site / "torch.pth").write_text(python("import sysconfig; print(sysconfig.get_paths()['purelib'])") + "\n")
    code = "import hrda_lib; print(hrda_lib.__version__, hrda_lib.__file__)"
    version, file = python(code, executable, cwd=tmp_path).split(maxsplit=1)
    assert version == python("import hrda_lib; print(hrda_lib.__version__)")
    assert Path(file).is_relative_to(site)
