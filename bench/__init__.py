"""Paired, interleaved, warmed measurements of the same work in JAX and in PyTorch: `python -m bench --help`.

A measurement is a module with two functions. `measure(bench)` runs in the parent and gives rows; `prepare(side, spec)`
runs in a process of its own for each side and gives the function that does the work once, so that neither framework's
threads, allocator or imports disturb the other's.
"""
