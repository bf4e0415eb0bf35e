"""What a bundle for another machine brings along: how to run it there, and with what."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..models import Checkpoint
from ..targets import FabricError, Target, host_triple
from .backend import NATIVE, add_backend, has_backend
from .bundle import cache_layout
from .deploy_notes import notes
from .embedding import add_embedding
from .options import CompileOptions
from .platforms import Platform, platform_of
from .runtime_files import (
    DEVICE_LIBRARIES,
    HEADERS,
    add_device_runtime,
    add_own_files,
    add_runtime,
    copy_installed,
)

RUNTIME = "runtime"
RUN = '''\
"""Runs this bundle with the runtime beside it: python run.py --help"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "runtime"))

from bitfabric.runtime.standalone import main  # noqa: E402

sys.exit(main(HERE, sys.argv[1:]))
'''


FRAMEWORK = """\
#!/bin/sh
# Makes Model.framework of module.so, as an app for iOS embeds it. Runs on a Mac with Xcode.
set -eu
cd "$(dirname "$0")"
rm -rf Model.framework
mkdir Model.framework
cp module.so Model.framework/Model
install_name_tool -id @rpath/Model.framework/Model Model.framework/Model
cat > Model.framework/Info.plist <<'PLIST'
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" \
"http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>CFBundleExecutable</key><string>Model</string>
  <key>CFBundleIdentifier</key><string>org.bitfabric.model</string>
  <key>CFBundlePackageType</key><string>FMWK</string>
  <key>CFBundleShortVersionString</key><string>1.0</string>
  <key>CFBundleVersion</key><string>1</string>
  <key>MinimumOSVersion</key><string>16.0</string>
</dict>
</plist>
PLIST
codesign --force --sign "${CODESIGN_IDENTITY:--}" Model.framework
"""


class Deployment:
    """The part of a bundle beyond module, weights and tokenizer; nothing for this machine's own.

    Parameters
    ----------
    target : Target
        What the bundle is compiled for.
    model : Checkpoint
        The model.
    with_runtime : bool
        Whether the bundle shall need nothing but Python and numpy where it runs.

    Raises
    ------
    FabricError
        If the runtime is asked for a system that nobody builds it for.
    """

    def __init__(self, target: Target, model: Checkpoint, with_runtime: bool) -> None:
        platform = platform_of(target)
        if platform is None and with_runtime:
            raise FabricError(
                f"--with-runtime can't serve {host_triple(target)}.",
                "Compile without it, and install bitfabric on the device.",
            )
        self._target, self._model, self._with_runtime = target, model, with_runtime
        self._platform: Platform | None = platform
        if platform is None or (platform.is_this_machine and not with_runtime):
            self._platform = None
        self._backend = ""

    def gather(self, folder: Path) -> None:
        """Add the runtime, where it was asked for; for Android as much of it as there is.

        Raises
        ------
        FabricError
            If a part of it can't be had; see `runtime_files` and `backend`.
        """
        platform, runtime = self._platform, folder / RUNTIME
        if platform is None:
            return
        if platform.system == "ios":
            (folder / "make_framework.sh").write_text(FRAMEWORK, encoding="utf-8")
        if self._with_runtime:
            files = self._model.tokenizer_files
            chat = "chat_template.jinja" in files
            add_runtime(platform, runtime, "tokenizer.json" in files, chat)
            if self._target.device in DEVICE_LIBRARIES:
                add_device_runtime(self._target.device, platform, runtime)
        elif platform.system == "linux-android":
            # No wheel is for Android: TVM's part is built there, and ours against its headers.
            add_own_files(runtime)
            copy_installed("apache-tvm", HEADERS["apache-tvm"], runtime)
        else:
            return
        (folder / "run.py").write_text(RUN, encoding="utf-8")
        device = self._target.device
        if has_backend(device) and add_backend(device, platform, runtime):
            self._backend = f"libbitfabric_{device}{platform.library_suffix}"

    def describe(
        self, folder: Path, name: str, options: CompileOptions, weights: list[dict[str, Any]]
    ) -> None:
        """Write ``DEPLOY.md``, and ``embed/`` for programs of one's own.

        Parameters
        ----------
        folder : pathlib.Path
            The bundle, as yet under another name.
        name : str
            The name that it will have.
        options : CompileOptions
            What was compiled.
        weights : list of dict
            As the manifest lists them.
        """
        if self._platform is None:
            return
        device = self._target.device
        library = ""
        if has_backend(device):
            library = f"libbitfabric_{device}{self._platform.library_suffix}"
        add_embedding(
            folder / "embed",
            self._model.name,
            self._model.config,
            options.lora,
            device,
            DEVICE_LIBRARIES.get(device, library),
            weights,
            cache_layout(self._model.config, options.kv_cache)["tensors"],
        )
        text = notes(
            model=self._model.name,
            folder=name,
            target=self._target,
            platform=self._platform,
            runtime=(folder / RUNTIME).is_dir(),
            complete=self._with_runtime,
            backend=f"{RUNTIME}/{NATIVE.as_posix()}/{self._backend}" if self._backend else "",
            library=library,
            tokenizer="tokenizer.json" in self._model.tokenizer_files,
            versions=(version("apache-tvm"), version("apache-tvm-ffi")),
        )
        (folder / "DEPLOY.md").write_text(text, encoding="utf-8")
