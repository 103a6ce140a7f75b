"""The one exception a user meets."""


class BlendError(ValueError):
    """Input that cannot be used; the message says what came, what was expected and what to do next."""


def first_line(error: Exception) -> str:
    """What a library's error says: its first line, without the full stop, or its kind where it says nothing."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
