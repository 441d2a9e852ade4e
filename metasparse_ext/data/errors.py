"""What goes wrong with data, in one sentence each."""


class DataError(ValueError):
    """Data that cannot be used: unknown name, absent split, corrupt file, too few classes."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A folder or file that was looked for and is not there."""
