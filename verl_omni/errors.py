"""What a user can mend: the errors that a command says in a line, where any other one shows its traceback."""


class InputError(ValueError):
    """A file, an option or a setting that cannot be used; the message names it, and the remedy."""
