"""A bundle's way to a device: only what is not there yet, in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..bundle import Bundle
from .exchange import Call, exchange
from .link import Link
from .message import PIECE


def send_bundle(
    link: Link,
    bundle: Bundle,
    path: str | None,
    compute: float,
    progress: Callable[[str, float], None] | None,
) -> None:
    """See to it that a device has a bundle, whole, and that it can run it.

    Parameters
    ----------
    link : Link
    bundle : Bundle
        Open here, so that its files are known to be what its manifest says.
    path : str or None
        Where it already is on the device.
    compute : float
        Seconds that the device may take to check it.
    progress : callable or None
        Is given what is being done and how much of it (0 to 1) is.

    Raises
    ------
    ConnectionLostError
        What has arrived by then stays there, and is not sent again.
    RemoteError
        If it is for another kind of device, or the device has no room for it.
    """
    if path is not None:
        named = {"path": path, "digest": bundle.manifest["digest"]}
        exchange(link, Call("bundle.named", named), compute)
        return
    told = progress or (lambda phase, fraction: None)
    offer = Call("bundle.offer", {"manifest": bundle.manifest})
    there = exchange(link, offer, compute).values["there"]
    if there is None:
        return
    sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
    total, done = max(sum(sizes.values()), 1), sum(there.values())
    for name, size in sizes.items():
        with (bundle.path / name).open("rb") as file:
            for begin in range(there.get(name, 0), size, PIECE):
                told(f"sending the bundle to {link.name}", done / total)
                file.seek(begin)
                piece = np.frombuffer(file.read(PIECE), np.uint8)
                arrays = {"piece": piece}
                place = {"file": name, "offset": begin}
                exchange(link, Call("bundle.write", place, arrays), compute)
                done += len(piece)
    told(f"checking the bundle on {link.name}", 1.0)
    exchange(link, Call("bundle.finish"), compute)
