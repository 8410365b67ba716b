"""The speculator: which guesses of which drafter the next pass checks."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.engine.request import Request
from edgellm.engine.speculation.drafter import Drafter
from edgellm.engine.speculation.pace import Pace

MOST_ROWS = 16  # of a pass with guesses: logits are made for so many at a time


class Speculator:
    """Drafters in the order in which they are asked: of a text, each guesses only what those before it left alone.

    most:  tokens that are guessed for a text at once.
    """

    def __init__(self, drafters: Sequence[Drafter] = (), most: int = 0, is_measured: bool = True) -> None:
        self.drafters = list(drafters)
        self.most = most
        self.pace = Pace(is_measured)

    def guesses(self, requests: Sequence[Request], n_room: int) -> dict[Request, list[int]]:
        """For texts whose next token is computed now, tokens to check along with it: n_room at most together."""
        found: dict[Request, list[int]] = {}
        n_room = min(n_room, MOST_ROWS - len(requests))
        open_ones = [request for request in requests if request.most_guesses > 0]
        for drafter in self.drafters:
            if n_room <= 0 or not open_ones:
                break
            guesses = drafter.guess(open_ones, min(self.most, n_room), self.pace)
            if not guesses:
                continue
            n_rows = len(requests) + sum(map(len, found.values()))
            counts = self.pace.worth({r: guess.chances for r, guess in guesses.items()}, n_rows, n_room)
            for request, n in counts.items():
                if n:
                    found[request] = guesses[request].tokens[:n]
                    n_room -= n
            open_ones = [request for request in open_ones if request not in found]
        return found

    def forget(self, request: Request) -> None:
        """A text has ended."""
        for drafter in self.drafters:
            drafter.forget(request)

    def close(self) -> None:
        for drafter in self.drafters:
            drafter.close()


NO_SPECULATION = Speculator()
