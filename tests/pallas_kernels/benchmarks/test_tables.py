from __future__ import annotations

from pallas_kernels.benchmarks.tables import trial_table
from pallas_kernels.benchmarks.tuning import Trial


def test_the_fastest_trial_stands_first_and_refused_ones_last() -> None:
    refused, slow, fast = (
        Trial({"rows": rows}, seconds, remark)
        for rows, seconds, remark in ((8, None, "no room"), (16, 2e-3, "HBM"), (32, 1e-3, "MXU"))
    )
    table = trial_table("matmul on v5p", "predicted", [refused, slow, fast], fast)
    assert table.columns[1] == "predicted us"
    assert table.rows == (
        ('{"rows": 32} (best)', "1,000.0", "MXU"),
        ('{"rows": 16}', "2,000.0", "HBM"),
        ('{"rows": 8}', "refused", "no room"),
    )
