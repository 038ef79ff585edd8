"""What can go wrong with an embedded server, as an operator reads it."""


class EmbeddedError(Exception):
    """The server cannot be set up or started here. The message says what was found and what to do."""

    exit_code = 1


class AlreadyRunning(EmbeddedError):
    """Another live process owns this data directory."""
