"""The six families of synthetic reasoning that the bundled model was trained on, with exact answers."""
