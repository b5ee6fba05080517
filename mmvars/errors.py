"""The one exception that means "the user can fix this"."""

__all__ = ['InputError']


class InputError(ValueError):
    """Bad input: an argument, a file or a config entry that cannot be used as it is.

    The message names the thing, says what it holds, and how to put it right. The command-line
    tools print the message alone and exit with status 2; everything else is a bug and keeps its
    traceback. It is a ``ValueError``, so library users need not know this class.
    """
