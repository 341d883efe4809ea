"""Puts the shared test helpers on the path, and keeps torch to one thread in each process of the tests.

Threads of one process that wait for each other at barriers come to a crawl where other processes want the same cores.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
