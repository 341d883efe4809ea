"""The whole scheduler on a virtual clock: no processes, no GPU, a cost model in place of both."""
