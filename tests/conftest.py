"""What every process of the tests inherits: one thread for torch, and an interrupt that interrupts.

Threads of one process that wait for each other at barriers come to a crawl where other processes want the same cores. A
shell that starts pytest in the background makes it ignore interrupts, and with it every engine that a test interrupts.
"""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)
