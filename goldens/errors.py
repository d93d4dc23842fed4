"""The one exception that a golden raises on purpose."""


class GoldenInputError(ValueError):
    """An input that the contract does not allow. The text is one line: tensor, place, value, what was
    expected.
    """


class CapacityError(GoldenInputError):
    """A source rank sends more rows to one expert than its lane there has room for.

    contracts/moe_and_layers.md, 8.4. `expert` is the global id; `load` the rows sent, `depth` the rows of a lane.
    """

    def __init__(self, *, op: str, source: int, destination: int, expert: int, load: int, depth: int) -> None:
        super().__init__(
            f"{op}: rank {source} sends {load} rows to expert {expert} on rank {destination}, "
            f"expected at most the {depth} of its lane there"
        )
        self.source = source
        self.destination = destination
        self.expert = expert
        self.load = load
        self.depth = depth
