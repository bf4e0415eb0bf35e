"""What is taken of CUDA's memory is counted and bounded before CUDA is asked.

Without a device there is no CUDA here, so its library and TVM's are stood in for by two small ones
that are linked as theirs are: the second asks the first for memory by versioned names. What is
tested, the library between them, is the real one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.runtime.device_calls import device_error
from bitfabric.runtime.native import build

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries of ELF alone")

CUDART = """
#include <stdlib.h>
static int asked;
int cudaMalloc(void** p, size_t n) { ++asked; return (*p = malloc(n)) ? 0 : 2; }
int cudaFree(void* p) { free(p); return 0; }
int cudaGetDevice(int* d) { *d = 0; return 0; }
int times_asked(void) { return asked; }
"""
CLIENT = """
#include <stddef.h>
int cudaMalloc(void**, size_t);
int cudaFree(void*);
void* take(size_t n) { void* p = 0; return cudaMalloc(&p, n) ? 0 : p; }
int give(void* p) { return cudaFree(p); }
"""
PROGRAM = """
import ctypes, json, sys
from pathlib import Path
from bitfabric.runtime.cuda.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
cudart = ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
ledger.open(cudart)
client = ctypes.CDLL(sys.argv[3], ctypes.RTLD_GLOBAL)
client.take.restype, client.take.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
client.give.argtypes = (ctypes.c_void_p,)
first, second = client.take(1000), client.take(500)
found = {"two": ledger.usage(0)}
client.give(first)
found["one"] = ledger.usage(0)
ledger.budget(0, 800)
asked = cudart.times_asked()
found["refused"] = client.take(301) is None
found["asked"] = cudart.times_asked() - asked
found["after"] = ledger.usage(0)
found["fits"] = client.take(300) is not None
ledger.reset_peak(0)
found["end"] = ledger.usage(0)
print(json.dumps(found))
"""


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    path, library = folder / f"{name}.c", folder / f"lib{name}.so.13"
    path.write_text(source)
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(path), *options]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


def test_memory_is_counted_and_refused_before_cuda_is_asked(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    versions.write_text("libcudart.so.13 { global: *; };")
    cudart = compiled(tmp_path, "cudart", CUDART, f"-Wl,--version-script={versions}")
    client = compiled(tmp_path, "client", CLIENT, str(cudart), f"-Wl,-rpath,{tmp_path}")
    ledger = tmp_path / build.library_name("cuda")
    build.build("cuda", ledger)
    assert build.is_current(ledger, "cuda")
    command = [sys.executable, "-c", PROGRAM, str(ledger), str(cudart), str(client)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert (found["two"]["in_use"], found["two"]["peak"]) == (1500, 1500)
    assert (found["one"]["in_use"], found["one"]["peak"]) == (500, 1500)
    assert found["refused"]
    assert found["asked"] == 0, "CUDA was not asked for what exceeds the budget"
    assert (found["after"]["in_use"], found["after"]["refused"]) == (500, 301)
    assert found["fits"]
    assert (found["end"]["in_use"], found["end"]["peak"], found["end"]["refused"]) == (800, 800, 0)


def test_a_refusal_is_a_sentence_with_a_remedy() -> None:
    error = device_error(RuntimeError("CUDA: out of memory"), "The memory budget has no room.")
    assert str(error).startswith("The memory budget has no room.")
    assert "--memory-budget" in error.remedy
