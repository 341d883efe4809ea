"""The commands of `zipage` on the command line."""
