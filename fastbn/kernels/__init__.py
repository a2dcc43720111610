"""Loops over C-contiguous arrays, compiled by Numba.

A kernel is given everything it touches, outputs and workspaces included: it checks nothing, allocates nothing and
knows no layouts beyond those in its name: ``ncs`` is (N, C, S), ``mc`` is (M, C). Each public kernel is one
``@driver`` that takes ``parallel`` as its last argument and holds the serial and the parallel loop.
Work is cut by the shape alone, so the results are the same bits for any number of threads.
"""
