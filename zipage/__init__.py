"""zipage."""
