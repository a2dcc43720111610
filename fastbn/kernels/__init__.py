"""Loops over C-contiguous arrays, compiled by Numba.

A kernel is given everything it touches, outputs and workspaces included: it checks nothing, knows no layouts beyond
the shape it asks for, and allocates nothing but a task's constants. Each public kernel is one ``@driver`` that takes
``parallel`` as its last argument and holds the serial and the parallel loop.
What is summed together depends on the shape alone, so the results are the same bits for any number of threads.
"""
