"""MSL through a C++ compiler, with `stand_in/` for Metal's library: checked, or run here.

The compiler sees Metal's types and functions as strict as Metal has them, so what it refuses Metal
would. A kernel that is compiled whole runs on the processor, its threads taking turns.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

STAND_IN = Path(__file__).with_name("stand_in")
COMPILER = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
_OPTIONS = ("-std=c++17", "-Wno-attributes", "-Wno-literal-suffix", "-Wno-unknown-pragmas",
            "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", f"-I{STAND_IN}")  # fmt: skip
_TO_RUN = ("-O1", "-fPIC")
_HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
_SHARED = re.compile(r"^( *alignas\(\d+\)) threadgroup (\w+ \w+\[)", re.MULTILINE)
_WITHIN = re.compile(r"^ {3,}(?:alignas\(\d+\) )?threadgroup \w+ \w+\[", re.MULTILINE)
_KERNEL = re.compile(r"^kernel void (\w+)\((.*?)\n\) \{", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"(device|constant)? ?(\w+)([*&]?) \w+ \[\[ ?(\w+)(?:\((\d+)\))? ?\]\]")
BUFFERS = 31
"""Places of a kernel's table of buffers."""
_CALL = """
extern "C" void run_{name}(char** buffers, const char* scalars, const unsigned* grid,
                           const unsigned* block) {{
  const unsigned threads = block[0] * block[1] * block[2];
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x)
        emulator::run(threads, [&](int i) {{
          const unsigned a = i % block[0], b = i / block[0] % block[1], c = i / block[0] / block[1];
          {name}({arguments});
        }});
}}
"""
_PLACES = {"threadgroup_position_in_grid": "xyz", "thread_position_in_threadgroup": "abc"}


def split(source: str) -> tuple[str, str, str]:
    """Return a kernel's name, its parameters, and its source as C++."""
    assert source.startswith(_HEAD)
    found = _KERNEL.search(source)
    assert found is not None
    return found[1], found[2], _SHARED.sub(r"\1 static \2", source.removeprefix(_HEAD))


def complaints(sources: Mapping[str, str]) -> list[str]:
    """Return what the compiler says against kernels, given by their names; nothing is well."""
    parts, found = [], []
    for name, source in sources.items():
        _, parameters, body = split(source)
        taken = list(_PARAMETER.finditer(parameters))
        places = [int(each[5]) for each in taken if each[5]]
        if len(taken) != parameters.count(",") + 1:
            found.append(f"{name}: a parameter stands for nothing")
        if places != list(range(len(places))) or len(places) > BUFFERS:
            found.append(f"{name}: its buffers are at {places}")
        if _WITHIN.search(source):
            found.append(f"{name}: a threadgroup's memory is declared inside of a block")
        parts.append(f"namespace of_{name} {{\nusing namespace metal;\n{body}}}\n")
    done = subprocess.run(
        [str(COMPILER), *_OPTIONS, "-fsyntax-only", "-x", "c++", "-"],
        input="#include <metal_stdlib>\n" + "".join(parts), capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    return [*found, *(lines if done.returncode else [])]


def compile_kernel(source: str, folder: Path) -> Path:
    """Compile a kernel to a library with ``run_NAME``, and return its path."""
    name, parameters, body = split(source)
    arguments = []
    for space, kind, form, attribute, place in _PARAMETER.findall(parameters):
        if attribute in _PLACES:
            count = int(kind[4:] or 1) if kind != "uint" else 1
            arguments.append(f"{kind}({', '.join(_PLACES[attribute][:count])})")
        elif space == "constant":
            arguments.append(f"*reinterpret_cast<const {kind}*>(scalars)")
        else:
            arguments.append(f"reinterpret_cast<{kind}{form}>(buffers[{place}])")
    text = _HEAD + body + _CALL.format(name=name, arguments=", ".join(arguments))
    file = folder / f"{name}.cc"
    file.write_text(text)
    library = file.with_suffix(".so")
    command = [str(COMPILER), f"-I{folder}", *_OPTIONS, *_TO_RUN]
    # The library is the same each time, and longer than any kernel: it is compiled beforehand.
    ready = folder / "metal_stdlib.gch"
    if not ready.exists() and "g++" in str(COMPILER):
        subprocess.run(
            [*command, "-x", "c++-header", str(STAND_IN / "metal_stdlib"), "-o", str(ready)],
            check=True,
        )
    command += ["-shared", str(file), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return library
