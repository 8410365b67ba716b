"""The compiled kernels, a file for each kind of op. Imported only to compile: a warm start never comes here.

Each file has one function per kernel, `build_NAME(isa[, format])`, which returns the Numba function

    kernel(record, chunk, thread)

that does the chunk-th part of the op's work. It takes addresses, raises nothing and allocates nothing.
"""
