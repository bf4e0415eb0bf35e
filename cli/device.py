"""`fabric device`: this computer or phone as a device for another computer."""

from __future__ import annotations

import ipaddress
import os
import platform
from pathlib import Path

import click

from ..targets import DEVICE_VARIABLE, FabricError
from .common import SEED_UNUSED, command, option
from .output import Output

PORT = 9190


@click.group("device")
def device_group() -> None:
    """Make this phone or computer a device that another computer trains and measures on."""


@command(
    "serve",
    examples=[
        "fabric device serve",
        "fabric device serve --key phone --tracker 127.0.0.1:9191",
        "fabric device serve --host 192.168.1.20 --key phone",
    ],
    seed_help=SEED_UNUSED,
)
@option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. There is no authentication: see above before you name a network.",
)
@option(
    "--port",
    type=click.IntRange(min=0, max=65535),
    default=PORT,
    show_default=True,
    help="Where to listen; 0 takes a free port.",
)
@option("--key", default="", metavar="NAME", help="What clients call this device; no password.")
@option(
    "--tracker",
    default=None,
    metavar="HOST:PORT",
    help="A TVM tracker that hands out this device by its --key when it is free.",
)
@option("--name", default=None, metavar="NAME", help="Its name in messages.  [default: its own]")
@option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where bundles that were sent are kept.  [default: in the cache folder]",
)
@option(
    "--device",
    default=None,
    metavar="NAME",
    help="Which of its devices: opencl:1, or a part of its name.",
)
def serve_command(
    output: Output,
    seed: int | None,
    host: str,
    port: int,
    key: str,
    tracker: str | None,
    name: str | None,
    folder: Path | None,
    device: str | None,
) -> None:
    """Serve this device until Ctrl-C: `fabric run BUNDLE --device rpc://HOST:PORT/KEY`.

    TVM's RPC has no authentication and no encryption: whoever reaches the port can run any program
    here. So it listens on this machine alone, to be reached through an ADB or SSH tunnel, unless
    --host names an address of a network that you trust.
    """
    from ..runtime.remote.address import check_key, parse_place, place
    from ..runtime.remote.bundles import data_folder
    from ..runtime.remote.server import Server

    if tracker is not None and not key:
        raise FabricError("--tracker needs a --key.", "Name the device: --key phone")
    if device is not None:
        os.environ[DEVICE_VARIABLE] = device
    server = Server(
        host,
        port,
        check_key(key),
        name or platform.node() or "device",
        folder or data_folder(),
        parse_place(tracker) if tracker is not None else None,
        lambda text: print(text, file=output.stream, flush=True),
    )
    if not is_loopback(host):
        output.say(
            f"[bold]Anyone who reaches {host}:{server.port} can run any program on this device[/]: "
            "TVM's RPC has no authentication. Use it on a trusted network only; better, leave out "
            "--host and use an ADB or SSH tunnel."
        )
    suffix = f" with the key {key}" if key else ""
    print(
        f"Serving at {place(host, server.port)}{suffix}. Ctrl-C ends it.",
        file=output.stream, flush=True,
    )  # fmt: skip
    server.run()


device_group.add_command(serve_command)


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own, which no network reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
