"""How the examples are built: public names only, short functions, imports in one direction, complete recipes."""

import ast
import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from scripts import EXAMPLES

import vfm_uda
from gta2cityscapes import Settings
from support.command_line import FOUNDATION, RECIPES

FILES = sorted(EXAMPLES.rglob("*.py"))
MODULES = {".".join(file.relative_to(EXAMPLES).with_suffix("").parts): file for file in FILES}
SCRIPTS = {name for name in MODULES if "." not in name}
ROOMS = (
    "hrda_lib",
    *(f"hrda_lib.{name}" for name in ("checkpointing", "data", "distributed", "lora", "models", "optim")),
)
NOT_FOR_OWN_DATA = {"arms", "source", "target", "source_size", "target_size", "classes"}


def public(room: str) -> set[str]:
    module = importlib.import_module(room)
    defined = {name for name, x in vars(module).items() if getattr(x, "__module__", "") == room and name[0] != "_"}
    return set(getattr(module, "__all__", defined))


PUBLIC = {room: public(room) for room in ROOMS}


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(module, name in it, name here); of plain imports the second is empty."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or ".", alias.name, alias.asname or alias.name) for alias in node.names)


def unexported(module: ast.Module) -> list[str]:
    """Names of hrda_lib that are used, and that none of its public modules exports."""
    wrong, rooms = list[str](), dict[str, str]()
    for source, name, here in imported(module):
        if source.split(".")[0] != "hrda_lib":
            continue
        if name and f"{source}.{name}" in PUBLIC:
            rooms[here] = f"{source}.{name}"
        elif not name or name not in PUBLIC.get(source, ()):
            wrong.append(f"{source} {name}".strip())
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            room = rooms[node.value.id]
            if node.attr not in PUBLIC[room]:
                wrong.append(f"{room} {node.attr}")
    return wrong


def bodies(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Lines of each function, from the first behind its docstring to the last."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            body = node.body[ast.get_docstring(node) is not None :] or node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1


def arrows() -> dict[str, set[str]]:
    """The modules of the examples that each one imports."""
    graph = dict[str, set[str]]()
    for name, file in MODULES.items():
        pairs = [(source, f"{source}.{part}") for source, part, _ in imported(tree(file))]
        graph[name] = {part if part in MODULES else source for source, part in pairs} & MODULES.keys()
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that lead to each other; empty if there are none."""
    left = dict(graph)
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("name", MODULES)
def test_only_public_names_of_the_library(name: str) -> None:
    assert not unexported(tree(MODULES[name]))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "toy.streets"])
def test_no_function_is_longer_than_forty_lines(name: str) -> None:
    assert not {function: lines for function, lines in bodies(tree(MODULES[name])) if lines > 40}


def test_imports_go_one_way() -> None:
    graph = arrows()
    assert not circle(graph)
    for name, others in graph.items():
        if name.startswith("support"):
            assert not others & SCRIPTS, name
        if name.startswith("toy"):
            assert all(other.startswith("toy") for other in others), name
    assert not graph["gta2cityscapes"] & {"ablation", "own_data"}
    assert "gta2cityscapes" in graph["ablation"] & graph["own_data"]  # one loop


def test_the_checks_see_what_is_wrong() -> None:
    wrong = "import hrda_lib\nimport hrda_lib.data\nfrom hrda_lib._checks import expect\nfrom hrda_lib import losses\n"
    wrong += "from hrda_lib.data import streams\nfrom hrda_lib import data as d\nd.streams\nd.Folders\n"
    expected = ["hrda_lib", "hrda_lib.data", "hrda_lib._checks expect", "hrda_lib losses", "hrda_lib.data streams"]
    assert unexported(ast.parse(wrong)) == [*expected, "hrda_lib.data streams"]
    assert not unexported(
        ast.parse("from hrda_lib import crop, data\nfrom hrda_lib.models import hrda\ndata.Folders\n")
    )
    text = 'def f(\n    x,\n):\n    """One\n\n    two."""\n    a = 1\n\n    return a\n\n'
    text += "class A:\n    def g(self):\n        ...\n"
    assert list(bodies(ast.parse(text))) == [("f", 3), ("g", 1)]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str) -> None:
    values = tomllib.loads(RECIPES[name].read_text(encoding="utf-8"))
    kind = vfm_uda.Settings if name in FOUNDATION else Settings
    defaults = {entry.name: entry.default for entry in fields(kind) if entry.default is not None}
    assert values.keys() == defaults.keys() - (NOT_FOR_OWN_DATA if name == "own_data" else set())
    for key, value in values.items():
        found = tuple(value) if isinstance(value, list) else value
        assert type(found) is type(defaults[key]), key
        if isinstance(found, tuple):
            assert {type(x) for x in found} == {type(x) for x in defaults[key]}, key
            assert key in ("arms", "source") or len(found) == len(defaults[key]), key


def test_the_demo_s_recipe_is_the_defaults() -> None:
    values = tomllib.loads(RECIPES["demo"].read_text(encoding="utf-8"))
    assert {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()} == {
        key: x for key, x in asdict(Settings()).items() if x is not None
    }
