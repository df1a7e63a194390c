"""The contract of a family of the transformers library; its test file subclasses it.

    class TestMixtral(TransformersFamily):
        form = FORMAT
        refusals = [*HEAD_REFUSALS, ({"num_experts": 3}, "the same thing, and differ")]

The models are the family's under `tests/fixtures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from modbrick.convert.format import Format
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows
from tests.contracts.transformers_parity import (
    COMMON_REFUSALS,
    Refusals,
    check_config_survives,
    check_greedy_with_a_cache,
    check_hostile_values,
    check_parity,
    check_refusals,
    fixtures,
    imported,
)


class TransformersFamily:
    """Every test of a family.

    Attributes:
      form: the format, whose name is the folder of its models.
      refusals: changes of a config that the family cannot represent, besides `COMMON_REFUSALS`.
    """

    form: ClassVar[Format]
    refusals: ClassVar[Refusals]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "directory" in metafunc.fixturenames:
            directories = fixtures(self.form.name)
            metafunc.parametrize("directory", directories, ids=lambda path: path.name)

    def test_computes_what_the_original_does(self, directory: Path, tmp_path: Path) -> None:
        check_parity(directory, tmp_path)

    def test_greedy_continuation_with_a_cache(self, directory: Path) -> None:
        check_greedy_with_a_cache(directory)

    def test_the_config_survives(self, directory: Path) -> None:
        check_config_survives(self.form, directory)
        check_own_config(self.form, imported(directory).config)

    def test_every_value_has_one_place_and_returns_to_it(
        self, directory: Path, tmp_path: Path
    ) -> None:
        check_rows(self.form, imported(directory).config)
        check_round_trip(directory, self.form, tmp_path)

    def test_hostile_values_end_cleanly(self) -> None:
        check_hostile_values(self.form, self.form.name)

    def test_refusals(self) -> None:
        check_refusals(self.form, self.form.name, COMMON_REFUSALS + self.refusals)
