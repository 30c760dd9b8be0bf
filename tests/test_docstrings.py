"""What docstrings promise: examples that stand alone, and a word for every argument."""

import ast
import doctest
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from documents import DOCS
from torch import nn

import hrda_lib
import hrda_lib.augment
import hrda_lib.checkpointing
import hrda_lib.data
import hrda_lib.distributed
import hrda_lib.lora
import hrda_lib.losses
import hrda_lib.models
import hrda_lib.optim

FULL_NAMES = (hrda_lib, hrda_lib.models, hrda_lib.data)
WHOLE = (
    hrda_lib.optim,
    hrda_lib.lora,
    hrda_lib.checkpointing,
    hrda_lib.distributed,
)  # modules whose functions are all public
ELSEWHERE = (hrda_lib.augment.fourier_style, hrda_lib.losses.entropy)
OF_TORCH = set(dir(nn.Module)) - {"forward", "train", "__call__"}  # whose meaning is torch's


def _examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = sorted(found.name for found in pkgutil.walk_packages(hrda_lib.__path__, "hrda_lib."))
    for name in names:
        yield from (test for test in finder.find(importlib.import_module(name)) if test.examples)


EXAMPLES = sorted(_examples(), key=lambda test: test.name)


@pytest.mark.parametrize("example", EXAMPLES, ids=[test.name for test in EXAMPLES])
def test_an_example_runs_when_pasted_alone(example: doctest.DocTest) -> None:
    torch.manual_seed(0)
    said: list[str] = []
    alone = doctest.DocTest(example.examples, {}, example.name, example.filename, example.lineno, example.docstring)
    result = doctest.DocTestRunner(verbose=False).run(alone, out=said.append)
    assert result.attempted == len(example.examples)
    assert not result.failed, "".join(said)


def _public() -> dict[str, Any]:
    found = {f"{module.__name__}.{name}": getattr(module, name) for module in FULL_NAMES for name in module.__all__}
    functions = [
        f for module in WHOLE for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__
    ]
    public = [f for f in (*functions, *ELSEWHERE) if not f.__name__.startswith("_")]
    found |= {f"{function.__module__}.{function.__name__}": function for function in public}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


def _methods(of: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in vars(of).items():
        function = getattr(value, "__func__", value)  # of a class method
        if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")) and name not in OF_TORCH:
            yield name, function


def _callables() -> dict[str, tuple[Any, str]]:
    """Each public callable and the docstring that describes its arguments."""
    found: dict[str, tuple[Any, str]] = {}
    for name, value in _public().items():
        if inspect.isfunction(value) or ("__init__" in vars(value) and not _is_protocol(value)):
            found[name] = value, inspect.cleandoc(value.__doc__ or "")
        for method, function in _methods(value) if inspect.isclass(value) else ():
            found[f"{name}.{method}"] = function, inspect.cleandoc(function.__doc__ or "")
    return found


def _is_protocol(value: type) -> bool:
    return getattr(value, "_is_protocol", False)


def _described(docstring: str) -> dict[str, str]:
    """What a docstring's ``Args`` say, by argument."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    said: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        if entry := re.match(r" {4}(\w[\w, ]*):(.*)", line):
            names, line = entry[1].split(", "), entry[2]
        for name in names:
            said[name] = f"{said.get(name, '')} {line.strip()}".strip()
    return said


def _missing(function: Any, docstring: str) -> list[str]:
    """What a docstring leaves out: an argument, or the meaning of a default that does not speak for itself."""
    said, missing = _described(docstring), []
    for name, parameter in inspect.signature(function).parameters.items():
        name, default = name.lstrip("_"), parameter.default
        if name in ("self", "cls"):
            continue
        text = said.get(name, "")
        elsewhere = ":meth:" in text or ":func:" in text or ":class:" in text or text.startswith(("as ", "of "))
        if not text:
            missing.append(name)
        elif default is None and "None" not in text and not elsewhere:
            missing.append(f"{name}=None")
        elif isinstance(default, bool) and not re.search("True|False", text) and not elsewhere:
            missing.append(f"{name}={default}")
        elif isinstance(default, str) and default and f'"{default}"' not in docstring and not elsewhere:
            missing.append(f"{name}={default!r}")
    return missing


def _returns_a_tensor(value: Any) -> bool:
    return inspect.isfunction(value) and "Tensor" in str(inspect.signature(value).return_annotation)


CALLABLES = _callables()
CLASSES = {name: value for name, value in _public().items() if inspect.isclass(value)}
TUPLES = {name: value for name, value in CLASSES.items() if issubclass(value, tuple)}


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_described(name: str) -> None:
    function, docstring = CALLABLES[name]
    assert docstring, f"{name} has no docstring"
    assert not _missing(function, docstring)


@pytest.mark.parametrize("name", [name for name, (value, _) in CALLABLES.items() if _returns_a_tensor(value)])
def test_a_tensor_that_comes_out_is_described(name: str) -> None:
    docstring = CALLABLES[name][1]
    assert re.search(r"^(Returns|Yields):", docstring, re.MULTILINE) or re.search(r"\([A-Z], ?.*\)", docstring[:120])


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_says_what_it_is(name: str) -> None:
    first = inspect.cleandoc(CLASSES[name].__doc__ or "").partition("\n")[0]
    assert first.endswith((".", ":")), first


@pytest.mark.parametrize("name", TUPLES)
def test_every_field_is_described(name: str) -> None:
    (body,) = (node.body for node in ast.parse(inspect.getsource(TUPLES[name])).body if isinstance(node, ast.ClassDef))
    said = {
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    assert said == set(TUPLES[name]._fields)


def _fields(module: ModuleType) -> Iterator[str]:
    """What stands below a name in a module, or in a class of it."""
    body = ast.parse(inspect.getsource(module)).body
    for part in (body, *(node.body for node in body if isinstance(node, ast.ClassDef))):
        for field, text in itertools.pairwise(part):
            if isinstance(field, ast.AnnAssign | ast.Assign) and isinstance(text, ast.Expr):
                yield ast.unparse(text.value)


def _taken_for_types() -> Iterator[str]:
    """Sentences before whose colon the docs build would see a type: of results, and of fields."""
    for name, (_, docstring) in CALLABLES.items():
        for section in re.findall(r"^(?:Returns|Yields):\n {4}(.*)", docstring, re.MULTILINE):
            yield from ([name] if re.match("[^`]*: ", section) else [])
    for name in sorted(found.name for found in pkgutil.walk_packages(hrda_lib.__path__, "hrda_lib.")):
        yield from (f"{name}: {said}" for said in _fields(importlib.import_module(name)) if re.match("[^`]*: ", said))


def test_no_sentence_is_taken_for_a_type() -> None:
    assert list(_taken_for_types()) == []


def test_what_is_left_out_is_found() -> None:
    def taken(x: int, size: int | None = None, flip: bool = False, mode: str = "fast", other: float = 1.0) -> None:
        """Something.

        Args:
            x, other: numbers,
                on two lines.
            size: a number.
            flip: a switch.
            mode: a word.

        Raises:
            ValueError: never.
        """

    text = inspect.cleandoc(taken.__doc__ or "")
    assert _described(text)["other"] == "numbers, on two lines."
    assert _missing(taken, text) == ["size=None", "flip=False", "mode='fast'"]
    assert _missing(taken, text.replace("size: a number.", "")) == ["size", "flip=False", "mode='fast'"]
    whole = text.replace("a number.", "None: any.").replace("a switch.", "True: it is.").replace("a word", '"fast"')
    assert _missing(taken, whole) == []


def _on_pages() -> set[str]:
    """The names that the autodoc directives of docs/api show."""
    shown: set[str] = set()
    for page in sorted((DOCS / "api").glob("*.md")):
        directives = re.findall(r"^\.\. auto(\w+):: (\S+)\n((?:   :.*\n)*)", page.read_text(), re.MULTILINE)
        for kind, name, options in directives:
            if kind in ("class", "function"):
                shown |= {name} | _listed(name, options)
            elif ":members:" in options:
                shown |= {n for n in CALLABLES | CLASSES if n.startswith(f"{name}.") and _documented(n, options)}
    return shown


def _listed(name: str, options: str) -> set[str]:
    members = re.search(r":members:(.*)", options)
    if members is None or members[1].strip():
        return {f"{name}.{member.strip()}" for member in members[1].split(",")} if members else set()
    return {found for found in CALLABLES if found.startswith(f"{name}.") and _documented(found, options)}


def _documented(name: str, options: str) -> bool:
    """Special methods are shown where they are asked for."""
    last = name.rpartition(".")[2]
    return not last.startswith("__") or last in options


def test_api_pages_show_every_public_callable() -> None:
    assert not sorted(set(CALLABLES | CLASSES) - _on_pages())


def test_the_index_has_a_row_for_every_name() -> None:
    rows = re.findall(r"^\| \{py:obj\}`~([\w.]+)` \|", (DOCS / "api" / "index.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(_public())
