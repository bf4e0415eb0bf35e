"""Builds the native backends along with the package; everything else stands in pyproject.toml.

They are built against the headers in TVM's two wheels, which therefore are requirements of the
build: pip builds in an environment of its own, where what the user has installed can't be seen.
Without a compiler the installation succeeds all the same: processors need no backend, and a device
that does has it built when it is first used, from the sources that the package brings along.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("runtime") / "native"


def load_build() -> ModuleType:
    """Return ``runtime/native/build.py``, which knows the sources and options, by its path."""
    spec = importlib.util.spec_from_file_location("native_build", NATIVE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


class BuildBackends(build_ext):
    """Builds plain shared libraries: no Python module is in them."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file's path without the tag of a Python version."""
        *folders, name = fullname.split(".")
        return str(Path(*folders, name + build.SUFFIX))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return none: nothing is called by name, and Python would want an init function."""
        return []


class Wheel(bdist_wheel):
    """A wheel for a system, but for any Python: the libraries do not know of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tags."""
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


def extension(kind: str) -> Extension:
    """Return one backend, as setuptools builds it."""
    unix = sys.platform != "win32"
    return Extension(
        f"bitfabric.runtime.native.libbitfabric_{kind}",
        [str(NATIVE / build.source(kind).name)],
        depends=[str(path.relative_to(Path.cwd())) for path in build.sources(kind)],
        include_dirs=build.include_folders(),
        define_macros=[("BITFABRIC_BUILD_KEY", f'"{build.build_key(kind)}"')],
        library_dirs=[] if sys.platform == "darwin" else build.library_folders(),
        libraries=[] if sys.platform == "darwin" else [*build.LIBRARIES, *(["dl"] if unix else [])],
        extra_compile_args=["-std=c++17", "-O2", "-g0"] if unix else ["/std:c++17", "/O2", "/EHsc"],
        extra_link_args=build.link_options(),
        language="c++",
        optional=True,
    )


def extensions() -> list[Extension]:
    """Return the backends that can be built here, saying why where none can."""
    try:
        if sys.platform != "win32":
            build.compiler()
        return [extension(kind) for kind in build.BUILT]
    except build.BuildError as error:
        print(f"warning: the native backends are left out. {error}", file=sys.stderr)
        return []


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildBackends, "bdist_wheel": Wheel})
