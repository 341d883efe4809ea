"""Reading the traces that an engine's processes write, and what can be seen in them."""
