"""The text of ``DEPLOY.md``: the commands that run one bundle where it is going."""

from __future__ import annotations

import sys

from ..targets import Target
from .backend import NATIVE, build
from .platforms import Platform
from .runtime_files import PYTHONS

_HEAD = """\
# {model} on {where}

Compiled for `{target}` on `{triple}`. Copy this folder as a whole: `manifest.json`
holds the SHA-256 of every file, and nothing runs from a folder that was altered.

| here | what it is |
| --- | --- |
| `module.so` | the compiled model: host code{and_device} |
| `weights/`, `tokenizer/` | the model |
| `embed/` | a C++ program that runs it, `generate.cc`, with the sizes of this model, `model.h` |
{rows}"""
_RUNTIME_ROW = "| `run.py`, `runtime/` | the runtime: {what} |\n"
_BACKEND_ROW = "| `{path}` | TVM's {device} backend, built for {where} |\n"

_READY = """
## Run it

The device needs numpy and Python {pythons}. It needs no network, no compiler
and no other package:

    python3 run.py --prompt "Once upon a time" --max-new-tokens 64
    python3 run.py --train train.jsonl --adapter adapter/
    python3 run.py --prompt "Once upon a time" --adapter adapter/
    python3 run.py --help
"""
_INSTALL = """
## Run it

On the device, with Python 3.10 to 3.13, in this folder's parent:

    pip install bitfabric
    fabric run {folder} --prompt "Once upon a time"
    fabric run {folder} --train train.jsonl --adapter adapter/

Compiled with `--with-runtime` the bundle needs Python and numpy only.
"""

_TERMUX = """
## Run it under Termux

TVM publishes nothing for Android, so its runtime is built once on the phone:

    pkg install python python-numpy clang cmake ninja git
    pip install apache-tvm-ffi=={ffi}
    git clone --depth 1 --recursive --branch v{tvm} https://github.com/apache/tvm
    cmake -S tvm -B tvm/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DUSE_LLVM=OFF
    ninja -C tvm/build tvm_runtime

Then, in the bundle:

    mkdir -p runtime/tvm/lib
    find ../tvm/build -name libtvm_runtime.so -exec cp {{}} runtime/tvm/lib/ ';'
    python run.py --prompt "Once upon a time" --max-new-tokens 64
    python run.py --train train.jsonl --adapter adapter/
{tokenizer}"""
_TOKENIZER = """
This model's tokenizer needs a package that is built there, too:

    pkg install rust
    pip install tokenizers jinja2
"""
_TERMUX_DEVICE = {
    "opencl": """
The phone's own OpenCL driver is found in `/vendor/lib64`; where Android keeps a program from
opening it there, `export LD_LIBRARY_PATH=/vendor/lib64` before, or name it with
`FABRIC_OPENCL_LIB`. `python run.py --devices` shows what the driver says of the device.
""",
    "vulkan": """
The phone's own Vulkan loader is `/system/lib64/libvulkan.so`; where another one is found first,
name it with `FABRIC_VULKAN_LIB`. `python run.py --devices` shows what the driver says of the
device.
""",
}
_BUILT_ON_FIRST_USE = """
`{library}` is not among the files: to build it takes {needs}, and the machine that
compiled this bundle had none. {remedy}
Its sources are here, and where the device has a C++ compiler the first run builds it. By hand:

    cd {native}
    c++ -std=c++17 -O2 -fPIC -shared -Icompat \\
        -DBITFABRIC_BUILD_KEY='"{key}"' \\
        -I../../../tvm/include -I"$(tvm-ffi-config --includedir)" {kind}.cc -o {library} \\
        -L../../../tvm/lib -ltvm_runtime -L"$(tvm-ffi-config --libdir)" -ltvm_ffi -ldl
"""
_NEEDS = {
    "linux-android": (
        "Android's NDK",
        "With one, named by ANDROID_NDK_ROOT, `fabric compile` builds it along.",
    ),
    "linux-gnu": (
        "a cross compiler",
        "With one (apt install g++-aarch64-linux-gnu) `fabric compile` builds it along.",
    ),
    "macos": ("Apple's SDK", "Compile on a Mac to have it along."),
}

_IOS = """
## Put it into an app

`module.so` is a library for iOS 16 and later, with an ad-hoc signature; an app that is signed for a
device signs it anew. Nobody publishes TVM's runtime for iOS, so it is built once, on a Mac with
Xcode:

    git clone --depth 1 --recursive --branch v{tvm} https://github.com/apache/tvm
    cmake -S tvm -B ios -G Xcode -DCMAKE_SYSTEM_NAME=iOS -DCMAKE_OSX_ARCHITECTURES=arm64 \\
        -DCMAKE_OSX_DEPLOYMENT_TARGET=16.0 -DUSE_METAL=ON -DUSE_LLVM=OFF
    cmake --build ios --config Release --target tvm_runtime tvm_runtime_metal

An app takes libraries as frameworks. `sh make_framework.sh` makes `Model.framework` of the module.

1. Add `Model.framework` and TVM's libraries to the app, "Embed & Sign".
2. Add `weights/` to its resources; a file of it is mapped as a whole.
3. `embed/generate.cc`, with `embed/model.h`, shows every call; its `main` becomes your function,
   with the paths of `Model.framework/Model` and of the weights.
"""
_EMBED = """
## Put it into a program

`embed/generate.cc` is the whole of it: it loads the module, gives the weights to the device and
asks for one token after the other. It uses the stable interface of TVM's runtime only.

    T={tvm} F={ffi}
    c++ -std=c++17 -O2 embed/generate.cc -I$F/include -L$F/lib -L$T/lib \\
        -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi -ldl -Wl,-rpath,$T/lib:$F/lib -o generate
    {path}./generate . 1 2 3

It writes token ids; `tokenizer/tokenizer.json` says which text they are.
"""
_EMBED_MAC = """
## Put it into a program

`embed/generate.cc` is the whole of it: it loads the module, gives the weights to the device and
asks for one token after the other. It uses the stable interface of TVM's runtime only.

    T={tvm} F={ffi}
    c++ -std=c++17 -O2 embed/generate.cc -I$F/include -L$F/lib -L$T/lib -ltvm_runtime -ltvm_ffi \\
        -Wl,-rpath,$T/lib -Wl,-rpath,$F/lib -o generate
    {path}./generate . 1 2 3

It writes token ids; `tokenizer/tokenizer.json` says which text they are.
"""
_APP = """
## Put it into an app

TVM's runtime and the program are built with the NDK, here r27 or later, for pages of 16 KiB:

    git clone --depth 1 --recursive --branch v{tvm} https://github.com/apache/tvm
    cmake -S tvm -B android -G Ninja -DCMAKE_BUILD_TYPE=Release -DUSE_LLVM=OFF \\
        -DCMAKE_TOOLCHAIN_FILE=$ANDROID_NDK_ROOT/build/cmake/android.toolchain.cmake \\
        -DANDROID_ABI={abi} -DANDROID_PLATFORM=android-24 -DANDROID_STL=c++_shared \\
        -DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON
    ninja -C android tvm_runtime

1. Into `jniLibs/{abi}/`: `libtvm_ffi.so` and `libtvm_runtime.so` from `android/`, the NDK's
   `libc++_shared.so`{backend}; and `module.so` under the name
   `libmodel.so`. It names `libtvm_ffi.so` as needed, so TVM's libraries keep their names.
2. `weights/` goes among the app's files; Android maps no file out of an APK's assets.
3. `embed/generate.cc`, with `embed/model.h`, shows every call; its `main` becomes your JNI
   function, with the paths of `libmodel.so` and of the weights.
{driver}"""
_APP_DRIVER = {
    "cpu": "",
    "opencl": """\
4. In `AndroidManifest.xml`, from Android 12 on, ask for the driver:
   `<uses-native-library android:name="libOpenCL.so" android:required="false" />`.
""",
    "vulkan": """\
4. In `AndroidManifest.xml` ask for the driver that the module needs, which Android brings:
   `<uses-feature android:name="android.hardware.vulkan.compute" />`.
""",
}
_ABI = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}


def notes(
    *,
    model: str,
    folder: str,
    target: Target,
    platform: Platform,
    runtime: bool,
    complete: bool,
    backend: str,
    library: str,
    tokenizer: bool,
    versions: tuple[str, str],
) -> str:
    """Return the text for one bundle.

    Parameters
    ----------
    model, folder : str
        The model's name and the bundle's.
    target : Target
        What it was compiled for.
    platform : Platform
        The system of its host code.
    runtime, complete : bool
        Whether it brings our runtime along, and TVM's, too.
    backend, library : str
        Path of the device's library in the bundle, "" where it is not there; and its file name,
        "" where the device needs none.
    tokenizer : bool
        Whether the model has a tokenizer of its own.
    versions : tuple of str
        Of apache-tvm and apache-tvm-ffi.
    """
    android = platform.system == "linux-android"
    parts = [_head(model, target, platform, runtime, complete, backend)]
    if android:
        own = _TOKENIZER if tokenizer else ""
        parts.append(_TERMUX.format(tvm=versions[0], ffi=versions[1], tokenizer=own))
        parts.append(_TERMUX_DEVICE[target.device] if library else "")
    elif complete:
        parts.append(_READY.format(pythons=_pythons(platform)))
    elif platform.system != "ios":
        parts.append(_INSTALL.format(folder=folder))
    if library and runtime and not backend:
        needs, remedy = _NEEDS[platform.system]
        parts.append(
            _BUILT_ON_FIRST_USE.format(
                library=library,
                needs=needs,
                remedy=remedy,
                native=f"runtime/{NATIVE.as_posix()}",
                kind=target.device,
                key=build.build_key(target.device),
            )
        )
    if android:
        parts.append(_app(platform, target.device, library, versions[0]))
    elif platform.system == "ios":
        parts.append(_IOS.format(tvm=versions[0]))
    else:
        parts.append(_embed(platform, complete, backend))
    return "".join(parts)


def _head(
    model: str, target: Target, platform: Platform, runtime: bool, complete: bool, backend: str
) -> str:
    """Return the title and the table of what is in the folder."""
    what = "TVM's, ours and their Python files" if complete else "our Python files"
    rows = _RUNTIME_ROW.format(what=what) if runtime else ""
    if backend:
        rows += _BACKEND_ROW.format(path=backend, device=target.device, where=platform.description)
    return _HEAD.format(
        model=model,
        where=platform.description,
        target=target.name,
        triple=platform.triple,
        and_device="" if target.device == "cpu" else f" and {target.device} kernels",
        rows=rows,
    )


def _pythons(platform: Platform) -> str:
    """Say which versions of Python the compiled part of tvm_ffi is for."""
    if platform.is_this_machine:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"


def _embed(platform: Platform, complete: bool, backend: str) -> str:
    """Return how to build the example program on a computer."""
    site = "$(python3 -c 'import site; print(site.getsitepackages()[0])')"
    where = "runtime" if complete else site
    text = _EMBED_MAC if platform.system == "macos" else _EMBED
    variable = "DYLD_LIBRARY_PATH" if platform.system == "macos" else "LD_LIBRARY_PATH"
    path = f"{variable}={backend.rpartition('/')[0]} " if backend else ""
    return text.format(tvm=f"{where}/tvm", ffi=f"{where}/tvm_ffi", path=path)


def _app(platform: Platform, device: str, library: str, tvm: str) -> str:
    """Return how to put a bundle into an Android app."""
    return _APP.format(
        tvm=tvm,
        abi=_ABI[platform.architecture],
        backend=f", `{library}`" if library else "",
        driver=_APP_DRIVER[device],
    )
