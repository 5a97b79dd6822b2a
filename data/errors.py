"""The errors of bad input data."""


class DataError(ValueError):
    """A data set, file or annotation cannot be used; the message says which, why and what to do."""


class NotAnImage(DataError):
    """The bytes are no image of a kind that is read here."""


class TooManyPixels(DataError):
    """The header of an image announces more pixels than are allowed."""
