"""On every mesh, loss and gradients of a step are those of one device."""

from __future__ import annotations

import numpy as np
import pytest

from tests.modbrick.parallel.device_process import reports_of


# The first two meshes have every axis and each way, on one of them. Dense products compile in half
# the time of those that users run, which test_dispatch.py compares; `make verify` does it all with
# those, both ways on each mesh, on longer rings and on meshes of one axis.
@pytest.mark.parametrize(
    ("dispatch", "meshes"),
    [
        (
            "reference+few",
            ["sequence=2,data=2,expert=2:gather", "fsdp=2,tensor=2,expert=2:exchange"],
        ),
        pytest.param("reference+weights", ["fsdp=2,tensor=2,expert=2"], marks=pytest.mark.verify),
        *(
            pytest.param(dispatch, meshes, marks=pytest.mark.verify)
            for dispatch in ("reference", "xla")
            for meshes in (["data=8", "expert=8"], ["fsdp=8", "data=2,expert=4"])
        ),
        *(
            pytest.param(
                dispatch,
                ["sequence=4,data=2", "fsdp=2,tensor=2,expert=2"],
                marks=pytest.mark.verify,
            )
            for dispatch in (
                *("reference", "reference+bricks", "reference+memory"),
                *("xla", "xla+bricks", "xla+memory"),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_step_on_a_mesh_is_that_of_one_device(dispatch: str, meshes: list[str]) -> None:
    reports = reports_of("equality.py", dispatch, *meshes)
    assert [(r["mesh"], r["way"]) for r in reports] == [
        (mesh, way)
        for mesh, _, only in (asked.partition(":") for asked in meshes)
        for way in ("gather", "exchange")
        if only == way
        or (not only and (way == "gather" or "expert" in mesh or "reference" not in dispatch))
    ]
    for report in reports:
        assert report["dropped"] == 0
        errors = report["errors"]
        assert {"loss", "load_balancing", "embedding"} < set(errors)
        where = f"{report['mesh']} {report['way']}"
        assert np.isfinite(list(errors.values())).all(), where
        worst = max(errors, key=lambda name: errors[name])
        assert errors[worst] < 1e-5, f"{where}: {worst} differs by {errors[worst]:.1e}"
