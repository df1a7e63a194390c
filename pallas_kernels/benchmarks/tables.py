"""Tables of what a benchmark measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pallas_kernels.benchmarks.static import TPU_PEERS
from pallas_kernels.benchmarks.tuning import Trial

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: headings.
        rows: one text a column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """The tables of all parts that were measured."""
    op = results["op"]
    yield from _numerics(results.get("numerics"))
    tpu = results.get("tpu")
    if isinstance(tpu, dict):
        peer = TPU_PEERS[op]
        yield _programs(tpu, peer)
        yield _kernels(tpu, peer)
    yield from _h100(results.get("h100"))
    yield from _gpu(results.get("gpu"))
    yield from _cpu(op, results.get("cpu"))


def trial_table(title: str, kind: str, trials: Sequence[Trial], best: Trial) -> Table:
    """The trials of a tuning, the fastest first, those that were refused last.

    Args:
        title: which kernel, and for which chip.
        kind: "measured" or "predicted".
        trials: of all candidates.
        best: of them.
    """
    rows = []
    for trial in sorted(trials, key=lambda t: (t.seconds is None, t.seconds)):
        time = "refused" if trial.seconds is None else f"{trial.seconds * 1e6:,.1f}"
        mark = " (best)" if trial is best else ""
        rows.append((json.dumps(trial.sizes) + mark, time, trial.remark))
    return Table(title, ("block sizes", f"{kind} us", "remark"), tuple(rows))


def _numerics(part: Any) -> Iterator[Table]:
    if not isinstance(part, dict):
        return
    rows = []
    for implementation, by_dtype in part.items():
        for dtype, entry in by_dtype.items():
            error = f"{entry['error']:.1e}" if "error" in entry else entry["refused"]
            rows.append((implementation, dtype, entry.get("mode", ""), error))
    yield Table(
        "Relative error of output and gradients against the reference in float64",
        ("implementation", "dtype", "mode", "error"),
        tuple(rows),
    )


def _programs(tpu: dict[str, Any], peer: str) -> Table:
    rows = []
    for generation, case, direction, entry in _entries(tpu):
        ours, theirs, ratio = entry["ours"], entry[peer], entry["ratios"]
        row = [generation, case, direction.replace("_", " + ")]
        for name, scale, form in (
            ("hbm_bytes", _MIB, ",.0f"),
            ("temp_bytes", _MIB, ",.0f"),
            ("predicted_seconds", 1e-6, ",.0f"),
            ("bundles_per_pair", 1, ",.1f"),
        ):
            if any(name in side for side in (ours, theirs)):
                row += [_number(ours, name, scale, form), _number(theirs, name, scale, form)]
                row.append(f"{ratio[name]:.2f}" if name in ratio else "")
        if "bundles_per_pair" in ours:
            row += [_spills(ours), _spills(theirs)]
        rows.append(row)
    width = max((len(row) for row in rows), default=0)
    heads = ["generation", "case", "direction"]
    for name in ("MiB moved", "MiB temporary", "predicted us", "bundles a pair"):
        heads += [f"{name}: ours", peer, "ratio"]
    heads += ["spills: ours", peer]
    padded = tuple(tuple(row + [""] * (width - len(row))) for row in rows)
    title = f"Whole programs compiled for TPUs, ours beside {peer}"
    return Table(title, tuple(heads[:width]), padded)


def _kernels(tpu: dict[str, Any], peer: str) -> Table:
    rows = []
    for generation, case, direction, entry in _entries(tpu):
        for name in ("ours", peer):
            for kernel in entry[name].get("kernels", ()):
                rows.append(
                    (
                        generation,
                        case,
                        direction.replace("_", " + "),
                        kernel["name"],
                        f"{kernel['bundles']:,}",
                        f"{kernel['loop_bundles']:,}",
                        f"{kernel['matmul_use']:.1%}",
                        f"{kernel['spills']:,}",
                        f"{kernel['vmem_bytes'] / _MIB:.1f}",
                        f"{kernel['hbm_bytes'] / _MIB:,.0f}",
                        f"{kernel['predicted_seconds'] * 1e6:,.0f}",
                        max(kernel["seconds"], key=kernel["seconds"].__getitem__),
                        "" if kernel["exact"] else "estimate",
                    )
                )
    heads = (
        "generation",
        "case",
        "direction",
        "kernel",
        "bundles",
        "inner loop",
        "MATMUL slots",
        "spills",
        "VMEM MiB",
        "MiB moved",
        "predicted us",
        "limited by",
        "counts",
    )
    return Table("Their kernels", heads, tuple(rows))


def _entries(tpu: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for generation, cases in tpu.items():
        for case, by_direction in cases.items():
            if isinstance(by_direction, dict):
                for direction, entry in by_direction.items():
                    yield generation, case, direction, entry


def _number(side: dict[str, Any], name: str, scale: float, form: str) -> str:
    return format(side[name] / scale, form) if name in side else "refused"


def _spills(side: dict[str, Any]) -> str:
    """Of all kernels together."""
    return f"{sum(k['spills'] for k in side['kernels']):,}" if "kernels" in side else "refused"


def _h100(part: Any) -> Iterator[Table]:
    if not isinstance(part, dict) or "error" in part:
        return
    rows = []
    for case, by_direction in part.items():
        for direction, entry in by_direction.items():
            for name, report in entry.items():
                for kernel in report.get("kernels", ()):
                    rows.append(
                        (
                            case,
                            direction.replace("_", " + "),
                            name,
                            kernel["name"],
                            f"{kernel['registers']}",
                            f"{kernel['spill_store_bytes']}",
                            f"{kernel['shared_bytes'] / 1024:.0f}",
                            ", ".join(f"{n} x {k}" for k, n in kernel["wgmma"].items()),
                            f"{kernel['instructions'].get('HGMMA', 0)}",
                            f"{kernel['warps_per_multiprocessor']}",
                            " ".join(kernel["notes"]),
                        )
                    )
                if "error" in report:
                    said = report["error"].splitlines()[0][:80]
                    rows.append((case, direction, name, said, *[""] * 7))
    heads = (
        "case",
        "direction",
        "contender",
        "kernel",
        "registers",
        "spilled bytes",
        "shared KiB",
        "wgmma",
        "HGMMA",
        "warps",
        "notes",
    )
    yield Table("Kernels compiled for an H100", heads, tuple(rows))


def _gpu(part: Any) -> Iterator[Table]:
    if not isinstance(part, dict):
        return
    rows = []
    for case, by_direction in part.items():
        if case == "summary":
            continue
        for direction, entry in by_direction.items():
            for name, figures in entry.items():
                if not isinstance(figures, dict):
                    continue
                time = f"{figures['seconds'] * 1e6:,.0f}" if "seconds" in figures else ""
                share = figures.get("share_of_dense_rate")
                rows.append(
                    (
                        case,
                        direction.replace("_", " + "),
                        name,
                        time or figures["error"],
                        f"{share:.0%}" if share else "",
                        f"{figures['error']:.1e}" if time and "error" in figures else "",
                    )
                )
    heads = ("case", "direction", "contender", "median us", "of the dense rate", "error")
    yield Table("Times on the GPU", heads, tuple(rows))


def _cpu(op: str, part: Any) -> Iterator[Table]:
    if not isinstance(part, dict):
        return
    if op == "grouped_matmul":
        shares = tuple(
            (direction.replace("_", " + "), f"{entry['share_of_dense_rate']:.0%}")
            for direction, entry in part.items()
        )
        yield Table("The XLA path on this CPU", ("direction", "share of the dense rate"), shares)
        return
    rows = tuple(
        (
            length,
            direction.replace("_", " + "),
            f"{entry['time_over_square_form']:.2f}",
            f"{entry['memory_over_square_form']:.3f}",
        )
        for length, by_direction in part.items()
        for direction, entry in by_direction.items()
    )
    heads = ("length", "direction", "time over the S x S form", "memory over it")
    yield Table("The XLA path on this CPU", heads, rows)
