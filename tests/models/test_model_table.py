"""The table of the page of models is that of the code."""

import model_table


def test_the_table_is_current() -> None:
    assert model_table.TABLE.read_text("utf-8") == model_table.text(), "run python tests/model_table.py"


def test_hrda_has_the_published_number_of_parameters() -> None:
    assert "| hrda | mit_b5 | 85.69 |" in model_table.text()
