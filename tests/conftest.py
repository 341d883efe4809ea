"""Keeps torch to one thread in each process of the tests.

Threads of one process that wait for each other at barriers come to a crawl where other processes want the same cores.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
