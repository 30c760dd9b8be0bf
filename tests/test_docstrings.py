"""What docstrings promise: examples that stand alone, and a word for every argument."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import hrda_lib


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
