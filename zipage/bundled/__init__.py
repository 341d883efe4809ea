"""Models that ship with zipage."""
