"""Registry of an operation's implementations, and the choice of one for a call and a platform.

An implementation is a module with the functions of the operation. It is imported when it is first
asked for. One that is written for a platform also has

    unsupported(case: Case | None, platform: str | None) -> str | None

which says why it cannot run a call on a platform, or None if it can. Without a case it speaks of
the platform alone, without a platform of the case alone.

A *named* implementation is never asked about the platform: a trace cannot know where it will be
lowered for. Lowering says it then: a kernel for TPUs on a CPU outside of interpret mode is refused
by jax ("Only interpret mode is supported on CPU backend"), while `jax.export` for TPUs,
ahead-of-time compilation and `pltpu.force_tpu_interpret_mode` just work. `None` has to guess, from
`target.platform_in_force`, and takes "xla" where it cannot be sure: that runs everywhere, on the
platform of the lowering.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType

from pallas_kernels.target import canonical_platform, partitioned_axes, platform_in_force

DEFAULT = "xla"


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One implementation: the module that has it, and the platform that it is for.

    Attributes:
        module: the import path of its module.
        platform: "tpu" or "gpu", the one that it is written for; None: it runs every case
            everywhere.
        automatic: whether it is chosen, where it can run, by those who name none.
    """

    module: str
    platform: str | None = None
    automatic: bool = True


@dataclasses.dataclass(frozen=True)
class Registry[Case]:
    """The implementations of one operation; `Case` is what of a call decides whether one can run.

    Attributes:
        implementations: by name, those for a platform the best first. "xla" is one of them, and is
            chosen where no other can be.
    """

    implementations: Mapping[str, Implementation]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all implementations."""
        return tuple(self.implementations)

    def unsupported(
        self, name: str, case: Case | None = None, platform: str | None = None
    ) -> str | None:
        """Says why an implementation cannot run a case on a platform; None if it can.

        Args:
            name: of the implementation.
            case: the call in question; None asks about the platform alone.
            platform: "cpu", "gpu" or "tpu"; None asks about the case alone.
        """
        if self.implementations[name].platform is None:
            return None
        platform = None if platform is None else canonical_platform(platform)
        reason: str | None = self.load_implementation(name).unsupported(case, platform)
        return reason

    def available_implementations(
        self, case: Case | None = None, platform: str | None = None
    ) -> dict[str, str | None]:
        """Lists every known implementation, with None where it can run, or else the reason why not.

        Args:
            case: the call in question, or None for any that an implementation can run.
            platform: "cpu", "gpu" or "tpu"; by default the one in force.
        """
        platform = platform or platform_in_force()
        divided = partitioned_axes()
        return {
            name: self.unsupported(name, case, platform) or (divided if known.platform else None)
            for name, known in self.implementations.items()
        }

    def choose_implementation(
        self,
        implementation: str | None = None,
        case: Case | None = None,
        platform: str | None = None,
    ) -> str:
        """Returns the name of the implementation that will run.

        Args:
            implementation: a name, or None for the best that can run the case on the platform.
            case: the call in question; without one, the answer for None is the best on the
                platform.
            platform: what None is to be the best for: "cpu", "gpu" or "tpu"; by default the one in
                force. Of no influence on a name.

        Raises:
            ValueError: the name is unknown, or the implementation cannot run the case; the message
                says why.
        """
        if implementation is None:
            platform = canonical_platform(platform or platform_in_force())
            kernels = [
                name
                for name, known in self.implementations.items()
                if known.automatic and known.platform == platform
            ]
            if not kernels or partitioned_axes():
                return DEFAULT
            able = (name for name in kernels if self.unsupported(name, case, platform) is None)
            return next(able, DEFAULT)
        if implementation not in self.implementations:
            known_names = ", ".join(map(repr, self.names))
            raise ValueError(
                f"implementation={implementation!r} is unknown; known are {known_names}"
            )
        reason = self.unsupported(implementation, case)
        if reason is not None:
            raise ValueError(
                f"implementation={implementation!r} cannot run: {reason}; "
                f"use {DEFAULT!r}, or None for the best that can"
            )
        return implementation

    def load_implementation(self, name: str) -> ModuleType:
        """Returns the module of the implementation of that name."""
        return importlib.import_module(self.implementations[name].module)
