"""Other stacks, as programs that `fabric bench --against NAME` measures beside ours.

Each speaks the protocol of `docs/benchmark.md`, as any program may.
"""
