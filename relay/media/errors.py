"""Why a push cannot be carried, in words for the creator who reads them in the encoder or in the log."""


class UnsupportedMedia(Exception):
    """A codec or a stream this version does not carry. The text says what to change."""


class BadMedia(Exception):
    """Bytes that are not what their headers say."""
