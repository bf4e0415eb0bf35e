"""The search for the fastest schedule of each kernel on a device, and the records of what it found.

`kernels` takes a model apart, `search` proposes decisions, `measure` times them in a process of its
own, `records` keeps the best; `applied` is what a compilation makes of the records.
"""
