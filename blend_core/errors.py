"""The one exception a user meets."""


class BlendError(ValueError):
    """Input that cannot be used; the message says what came, what was expected and what to do next."""
