"""The base of the platform's errors; imports nothing, so that commands name it before they import torch."""


class PlatformError(RuntimeError):
    """A command cannot go on; the message tells the user why and what to do, so no traceback is printed."""
