"""The compiler's own schedule of a TPU kernel: bundles and use of their slots, by loop.

A TensorCore runs one bundle, a very long instruction word, a cycle; its slots are the units of the
core. libtpu writes the final bundles of a kernel, and how many units of each kind every bundle
keeps busy, when it is asked to (`DUMP_FLAGS`). What it writes is text, one bundle a line; loops and
predicated regions are found by their branches.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

# Only the last pass: the folder is twenty times smaller and compiling twice as fast.
DUMP_FLAGS = (
    "--xla_jf_dump_to={folder}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final",
)

# What libtpu leaves of a kernel: TIME-NAME-NUMBER-KIND.txt.
_BUNDLES, _USE = "final_bundles", "final_hlo-static-per-bundle-utilization"
_REGISTERS = "pre-finalize-registers-and-allocations"
_FILE = re.compile(rf"(?P<prefix>\d+-.*)-\d+-(?P<kind>{_BUNDLES}|{_USE}|{_REGISTERS})\.txt")

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:(.*)$")
_BRANCH = re.compile(r"sbr\.\w+ (\([^)]*\) )?target = \$region(\d+)")
_START = re.compile(r"Start(?:/End empty)? region (\d+)")
_COPY = re.compile(r"= dma\.(?!done)")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/")
# Bundles of the loop in which v6e waits for a copy; the compiler adds it, no kernel says so.
LONGEST_WAIT = 7
_ALLOCATION = re.compile(r"#allocation\d+ \[.*?space=vmem, size = (0x[0-9a-f]+)")


@dataclasses.dataclass(frozen=True)
class Region:
    """A kernel, a loop in it, or a part that a branch can skip.

    Attributes:
        kind: "kernel", "loop" or "branch".
        start: the first bundle.
        end: one past the last.
        bundles: how many there are, inner regions included.
        slots: units kept busy, summed over the bundles, by kind of unit, inner regions included.
        copies: instructions that start a copy between memories, inner regions included.
        children: the regions directly inside, in order.
        trips: of a loop, how often it runs when it is entered, if its exit test says so.
    """

    kind: str
    start: int
    end: int
    bundles: int
    slots: dict[str, int]
    copies: int = 0
    children: tuple[Region, ...] = ()
    trips: int | None = None

    def walk(self) -> Iterator[Region]:
        """This region and all inside, outer ones first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def steady(self) -> tuple[int, dict[str, int]]:
        """Bundles and slots without what a branch skips that neither multiplies nor starts copies.

        Such parts start and finish a block of the output; most steps skip them.
        """
        bundles, slots = self.bundles, dict(self.slots)
        for child in self.children:
            inner_bundles, inner_slots = child.steady
            if self.skips(child):
                inner_bundles, inner_slots = 0, dict.fromkeys(slots, 0)
            bundles -= child.bundles - inner_bundles
            for name in slots:
                slots[name] -= child.slots[name] - inner_slots[name]
        return bundles, slots

    def own(self, unit: str) -> int:
        """Slots of a unit used outside of the regions inside."""
        return self.slots[unit] - sum(child.slots[unit] for child in self.children)

    @property
    def own_bundles(self) -> int:
        """Bundles outside of the regions inside."""
        return self.bundles - sum(child.bundles for child in self.children)

    @property
    def executed_bundles(self) -> int:
        """Bundles that run when it is entered, branches taken; loops without known trips once."""
        trips = self.trips or 1
        return trips * (self.own_bundles + sum(child.executed_bundles for child in self.children))

    @property
    def trips_are_known(self) -> bool:
        """Returns whether every loop says how often it runs, or only waits for a copy.

        What waiting takes is up to the memory.
        """
        return all(
            region.trips is not None
            or (region.bundles <= LONGEST_WAIT and not region.copies + region.slots["VSTORE"])
            for region in self.walk()
            if region.kind == "loop"
        )

    def skips(self, child: Region) -> bool:
        """Returns whether a region directly inside is a part that most steps skip, see `steady`.

        One that starts copies in a loop of its own, beside as many that this region starts, fills
        the buffers before the first step.
        """
        if child.kind != "branch" or child.slots["MXU"]:
            return False
        has_loop = any(region.kind == "loop" for region in child.children)
        return not child.copies or (has_loop and self.copies >= 2 * child.copies)

    @property
    def only_stores(self) -> bool:
        """Returns whether it is a branch that stores but has no product, copy or loop."""
        return (
            self.kind == "branch"
            and self.slots["VSTORE"] > 0
            and not self.slots["MXU"]
            and not self.copies
            and all(region.kind != "loop" for region in self.walk())
        )

    @property
    def multiplies_in_loops(self) -> bool:
        """Returns whether a loop inside multiplies."""
        inside = (region for region in self.walk() if region is not self)
        return any(region.kind == "loop" and region.slots["MXU"] for region in inside)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedule of one kernel.

    Attributes:
        name: the name of its instruction in the optimised program.
        capacity: units of each kind.
        kernel: its regions.
        vmem: bytes of VMEM for blocks, scratch and spills.
    """

    name: str
    capacity: dict[str, int]
    kernel: Region
    vmem: int

    @property
    def inner_loop(self) -> Region:
        """The innermost loop that multiplies most; the kernel if none multiplies.

        Loops that do not multiply, such as the first step's fetches, do not count.
        """
        loops = [r for r in self.kernel.walk() if r.kind == "loop" and r.slots["MXU"]]
        loops = [r for r in loops if not r.multiplies_in_loops]
        return max(
            loops, key=lambda region: (region.slots["MXU"], region.bundles), default=self.kernel
        )

    @property
    def matmul_regions(self) -> tuple[Region, ...]:
        """The loops, skipped parts or else the kernel that multiply themselves, in order.

        Regions whose products are all in regions inside them are left out, and so are those with
        less than a hundredth of the kernel's.
        """
        least = self.kernel.slots["MXU"] / 100
        found = tuple(r for r in self.kernel.walk() if r.own("MXU") > least)
        return found or (self.kernel,)

    def use(self, region: Region, unit: str, steady: bool = True) -> float:
        """The part of the slots of `unit` that `region` uses."""
        bundles, slots = region.steady if steady else (region.bundles, region.slots)
        return slots[unit] / (bundles * self.capacity[unit]) if bundles else 0.0


def read_schedules(folder: Path, branch_delay: int) -> dict[str, Schedule]:
    """The schedules that libtpu left in `folder`, by the name of the instruction.

    Args:
        folder: what `DUMP_FLAGS` named.
        branch_delay: of the generation, see `chips.TpuChip`.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            files.setdefault(match["prefix"], {})[match["kind"]] = path
    found = {}
    for prefix, of_kernel in files.items():
        if _BUNDLES not in of_kernel:
            continue
        if _USE not in of_kernel:
            raise ValueError(f"{folder}: no file of slot use belongs to {of_kernel[_BUNDLES].name}")
        vmem = 0
        if _REGISTERS in of_kernel:
            text = of_kernel[_REGISTERS].read_text()
            vmem = sum(int(size, 16) for size in _ALLOCATION.findall(text))
        bundles, use = of_kernel[_BUNDLES].read_text(), of_kernel[_USE].read_text()
        name = prefix.split("-", 1)[1]
        found[name] = parse_schedule(name, bundles, use, branch_delay, vmem)
    return found


def parse_schedule(name: str, bundles: str, use: str, branch_delay: int, vmem: int = 0) -> Schedule:
    """The schedule of one kernel from the two texts about it.

    Raises:
        ValueError: the texts do not fit each other or are of an unknown form.
    """
    units, capacity, rows = _parse_use(use)
    texts = _parse_bundles(bundles)
    if len(texts) > len(rows):
        raise ValueError(f"{name}: {len(texts)} bundles, and slot use of {len(rows)}")
    rows = rows[: len(texts)]
    copies = [0, *itertools.accumulate(len(_COPY.findall(text)) for text in texts)]
    exits = [(i, int(n)) for i, text in enumerate(texts) for n in _EXIT.findall(text)]
    sums = [[0, *itertools.accumulate(row[i] for row in rows)] for i in range(len(units))]

    def region(kind: str, start: int, end: int, inside: list[tuple[int, int, str]]) -> Region:
        children = []
        rest = sorted(inside, key=lambda span: (span[0], -span[1]))
        while rest:
            first, last, inner_kind = rest.pop(0)
            nested = [span for span in rest if span[0] < last]
            # A span that straddles an end (a jump out of two levels) is cut at the outer end.
            nested = [(a, min(b, last), k) for a, b, k in nested]
            rest = [span for span in rest if span[0] >= last]
            children.append(region(inner_kind, first, last, nested))
        slots = {unit: run[end] - run[start] for unit, run in zip(units, sums, strict=True)}
        started = copies[end] - copies[start]
        trips = _trips(exits, start, end, children) if kind == "loop" else None
        return Region(kind, start, end, end - start, slots, started, tuple(children), trips)

    spans = list(_spans(texts, branch_delay))
    return Schedule(name, capacity, region("kernel", 0, len(texts), spans), vmem)


def _trips(
    exits: list[tuple[int, int]], start: int, end: int, children: list[Region]
) -> int | None:
    """The constant that a loop's counter, which starts at 0, has reached when it is left."""
    loops = [child for child in _regions(children) if child.kind == "loop"]
    own = [
        bound
        for place, bound in exits
        if start <= place < end and not any(loop.start <= place < loop.end for loop in loops)
    ]
    return own[0] if len(own) == 1 else None


def _regions(children: list[Region]) -> Iterator[Region]:
    for child in children:
        yield from child.walk()


def _parse_use(text: str) -> tuple[list[str], dict[str, int], list[list[int]]]:
    lines = text.splitlines()
    if len(lines) < 4 or not lines[0].startswith("== CAP") or not lines[3].startswith("== UTIL"):
        raise ValueError("the file of slot use does not have the known form")
    units = [unit.strip() for unit in lines[1].split(",")]
    capacity = dict(zip(units, map(int, lines[2].split()), strict=True))
    return units, capacity, [list(map(int, line.split())) for line in lines[4:] if line.strip()]


def _parse_bundles(text: str) -> list[str]:
    """The text of each bundle, with the comment lines that follow it."""
    bundles: list[str] = []
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match and int(match[1], 16) == len(bundles):
            bundles.append(match[2])
        elif bundles:
            bundles[-1] += "\n" + line
    return bundles


def _spans(bundles: list[str], branch_delay: int) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of each loop and each part that a branch skips."""
    starts = {int(n): i for i, text in enumerate(bundles) for n in _START.findall(text)}
    for i, text in enumerate(bundles):
        for _, target in _BRANCH.findall(text):
            start, after = starts.get(int(target)), min(i + 1 + branch_delay, len(bundles))
            if start is None:
                continue
            if start <= i:
                yield start, after, "loop"
            elif start > after:
                yield after, start, "branch"
