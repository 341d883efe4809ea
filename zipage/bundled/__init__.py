"""The model that ships with zipage, and its tasks."""
