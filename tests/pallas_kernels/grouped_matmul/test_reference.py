from __future__ import annotations

from tests.contracts.grouped_matmul import GroupedMatmulContract


class TestReference(GroupedMatmulContract):
    implementation = "reference"
