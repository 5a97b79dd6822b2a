"""Defines the errors of bad input data."""


class DataError(ValueError):
    """A data set, file or annotation cannot be used; the message names it and the reason."""


class NoSchema(DataError):
    """A data set does not say which keypoints it has."""


class UnclearCategory(DataError):
    """Several categories of a data set could be meant, or it has none of the wanted name."""


class NotAnImage(DataError):
    """The bytes are no image of an accepted format."""


class TooManyPixels(DataError):
    """The header of an image announces more pixels than are allowed."""


class TooCostly(DataError):
    """The structure of an image asks for more work than is allowed."""
