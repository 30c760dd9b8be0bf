"""The table of the page of models is that of the code."""

import model_table
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hrda_lib.models import hrda


def test_the_table_is_current() -> None:
    assert model_table.TABLE.read_text("utf-8") == model_table.text(), "run python tests/model_table.py"


def test_hrda_has_the_published_number_of_parameters() -> None:
    assert '| `hrda("mit_b5")` | mit_b5 | 85.69 |' in model_table.text()


def test_bytes_on_tensors_without_storage_are_those_of_real_ones() -> None:
    torch.manual_seed(0)
    model = hrda("mit_b0", detail_size=(64, 64)).train()
    sizes: dict[int, int] = {}
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        alive = model(torch.rand(1, 3, 128, 128))  # so that no address is used twice
    with torch.device("meta"):
        counted = hrda("mit_b0", detail_size=(64, 64))
    assert model_table.kept(counted, 128) == pytest.approx(sum(sizes.values()), rel=0.02)
    assert alive.logits.requires_grad
