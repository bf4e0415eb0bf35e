"""The systems that a bundle's host code can be linked for from any machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..targets import FabricError, Target, host_triple, this_host


@dataclass(frozen=True)
class Platform:
    """One system.

    Attributes
    ----------
    triple : str
        LLVM's name of it, as ``--host`` takes it and the manifest states it.
    system : str
        ``"linux-gnu"``, ``"linux-android"``, ``"macos"`` or ``"ios"``.
    description : str
        What a person calls it.
    wheel_tags : tuple of str
        The platforms of wheels that run there, the newest first; none where nobody builds wheels.
    """

    triple: str
    system: str
    description: str
    wheel_tags: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """``"aarch64"`` or ``"x86_64"``."""
        return self.triple.partition("-")[0]

    @property
    def library_suffix(self) -> str:
        """What the names of shared libraries end with."""
        return ".dylib" if self.system in ("macos", "ios") else ".so"

    @property
    def is_this_machine(self) -> bool:
        """Whether its programs run here."""
        here = find_platform(this_host())
        return here is not None and here.triple == self.triple


def _manylinux(architecture: str) -> tuple[str, ...]:
    versions = ("2_28", "2_27", "2_24", "2_17")
    return tuple(f"manylinux_{version}_{architecture}" for version in versions)


PLATFORMS = (
    Platform("aarch64-linux-android", "linux-android", "Android on 64-bit Arm"),
    Platform("x86_64-linux-android", "linux-android", "Android on x86-64"),
    Platform("aarch64-linux-gnu", "linux-gnu", "Linux on 64-bit Arm", _manylinux("aarch64")),
    Platform("x86_64-linux-gnu", "linux-gnu", "Linux on x86-64", _manylinux("x86_64")),
    # LLVM reads the second word as the vendor: without "apple" it would write ELF for a Mac.
    Platform("aarch64-apple-macos", "macos", "macOS on Apple silicon", ("macosx_11_0_arm64",)),
    Platform("x86_64-apple-macos", "macos", "macOS on Intel"),
    Platform("aarch64-apple-ios", "ios", "iOS on iPhones and iPads"),
)
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64"}


def find_platform(triple: str) -> Platform | None:
    """Return the platform that a triple means, such as ``arm64-macos``; None for another."""
    architecture, _, rest = triple.partition("-")
    rest = rest.replace("unknown-", "").replace("apple-", "")
    architecture = _ALIASES.get(architecture, architecture)
    for platform in PLATFORMS:
        # A triple may end with a version: linux-android24, macos14, linux-gnu.2.28.
        if platform.architecture == architecture and rest.startswith(platform.system):
            return platform
    return None


def platform_of(target: Target) -> Platform | None:
    """Return the platform of a target's host code; None where it is none of `PLATFORMS`."""
    return find_platform(host_triple(target))


def for_host(target: Target, triple: str) -> Target:
    """Return a target whose host code is for another system than the one it comes with.

    Parameters
    ----------
    target : Target
        A device, whose processor is replaced; or a processor, whose system is.
    triple : str
        One of `PLATFORMS`, or another way to write it.

    Raises
    ------
    FabricError
        If nothing links for it, or the target is a processor of another architecture.
    """
    platform = find_platform(triple)
    if platform is None:
        names = ", ".join(known.triple for known in PLATFORMS)
        raise FabricError(f"There is no host named {triple!r}.", f"There are: {names}.")
    if target.family != "cpu":
        return target.with_host(platform.triple)
    own = host_triple(target).partition("-")[0]
    if own != platform.architecture:
        raise FabricError(
            f"The target {target.name} is a processor of {own}, and {platform.triple} is a host "
            f"of {platform.architecture}.",
            "Choose the processor with --target; list them with: fabric targets",
        )
    return replace(target, options={**target.options, "mtriple": platform.triple})
