"""The one exception a user meets."""


class BlendError(ValueError):
    """Input that cannot be used; the message says what came, what was expected and what to do next."""

    # What prints an exception puts its module before its name, but for builtins. Inside ComfyUI the module is named by
    # the pack's path, which would hide the sentence.
    __module__ = "builtins"

    def __reduce__(self):
        return _again, self.args  # pickle would look for the class in builtins


def _again(*args) -> BlendError:
    return BlendError(*args)


def first_line(error: Exception) -> str:
    """What a library's error says: its first line, without the full stop, or its kind where it says nothing."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
