"""The one error a user of the package is meant to read."""


class LandscapeError(ValueError):
    """What was asked, what is possible, what to do: one sentence each, with the values.

    Commands print the message alone and exit with `exit_code`; code may catch it as ValueError.
    """

    exit_code = 2
