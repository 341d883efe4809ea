"""One compression job from start to end: scoring, selection, compaction."""
