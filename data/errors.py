"""The error of bad input data."""


class DataError(ValueError):
    """A data set, file or annotation cannot be used; the message says which, why and what to do."""
