"""Compressions from start to end: scoring, selection, compaction, and the queue, runner and journal of all jobs."""
