"""The one exception that a golden raises on purpose."""


class GoldenInputError(ValueError):
    """An input that the contract does not allow. The text is one line: tensor, place, value, what was
    expected.
    """
