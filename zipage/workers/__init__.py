"""The engine's child processes: each file receives, calls and sends."""
