"""The one error of this folder."""


class DecodeError(ValueError):
    """Bytes from outside are not what they claim to be; dropped and counted, never fatal."""
