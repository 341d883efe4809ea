"""Requests, blocks, query slots and planning; imports no torch."""
