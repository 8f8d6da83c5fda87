"""What is raised of input that a person has to mend."""


class DataError(Exception):
    """Input that cannot be used as it is.

    The message names the file, the value found there and what to do about it. The command line
    prints it without a traceback and leaves with exit code 1.
    """


class OptionError(DataError):
    """An option with a value that no input would go with; the command line leaves with exit code 2."""
