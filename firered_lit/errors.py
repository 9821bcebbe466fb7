"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, row, key), what to do. The command line exits with 2."""

    exit_code = 2
