"""Exceptions that a user of zipage can meet. Each carries one sentence that says what to change."""


class ZipageError(Exception):
    """Base of every error that zipage raises on purpose."""


class InvalidRequestError(ZipageError):
    """A request was refused. `field` names the offending request or sampling field, where there is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ConfigError(ZipageError):
    """An engine option has a value outside its allowed range, or two options contradict each other."""


class ModelError(ZipageError):
    """A checkpoint cannot be found, is of an unsupported kind, or does not match its own config.json."""


class EngineError(ZipageError):
    """The engine could not start, or one of its processes has ended."""
