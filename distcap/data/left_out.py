"""What a reader leaves out, counted and named: nothing disappears in silence."""

from collections import Counter

from lightning.pytorch.utilities import rank_zero_warn


class LeftOut:
    """How many there are of each reason, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, at: object, count: int = 1) -> None:
        """Tell of one, or of several that are told by the first of them."""
        self.counts[reason] += count
        self.first.setdefault(reason, str(at))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """For instance: 2 captions that are empty or null, the first: a.json, image id 7."""
        return "; ".join(f"{count} {reason}, the first: {self.first[reason]}" for reason, count in self.counts.items())

    def warn(self, where: object) -> None:
        """Say so once, in one line, if there is anything to say."""
        if self:
            rank_zero_warn(f"left out of {where}: {self}")
