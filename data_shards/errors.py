"""Exceptions for input that the user has to fix."""


class DataError(Exception):
    """Raised for input that cannot be used as it is.

    The message names the file, the bad value and a way to fix it. The command line prints the message without a
    traceback and exits with code 1.
    """


class OptionError(DataError):
    """Raised for an option whose value is invalid for any input; the command line exits with code 2."""
