"""Which requests are worth beginning: a request that could not be answered in time is refused before any work is done on it.

Decides on values and keeps a small account; does no I/O and knows nothing of HTTP, models or threads. There is one for each
event loop.

The queue in front of a graph bounds rows, but reading and encoding stand before it: without a bound there, a server that is
asked for twice its capacity spends its time on bodies whose answers come too late. So the work that was admitted and is not
finished is counted in bytes of bodies, and how many seconds a byte takes is learnt per endpoint from what finishes while work
waits. The method is a normalized least-mean-squares filter (Widrow and Hoff, 1960) over short windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

REQUEST_BYTES = 512
"""What a request costs beside its body, in bytes of one."""
WINDOW_S = 0.1
"""How long work is watched at least before its cost is corrected."""
MIN_FINISHED, MAX_WINDOW_S = 8, 1.0
"""With fewer requests work is watched on, for so long at most: a pause of the process is not what one or two of them cost."""
LEARNING_RATE = 0.3
ROWS_RATE = 0.05
MIN_REQUESTS = 16
"""So many may always wait: below, batches are small, and what finishes says little of what could."""
MIN_SHARE, MAX_SHARE = 0.1, 0.9
DEFAULT_PRIORITY, LEAST_URGENT = 5, 9
SHARES = tuple(
    MAX_SHARE - (MAX_SHARE - MIN_SHARE) * max(0, priority - 1) / (LEAST_URGENT - 1) for priority in range(LEAST_URGENT + 1)
)
"""By priority: the share of its time that a request may find taken."""
RETRY_AFTER_S = (0.1, 2.0)
"""Refused requests return within this span, so that they do not come back in one wave."""


@dataclass(slots=True, eq=False)
class Ticket:
    """An admitted request. `finish` is called once with it."""

    endpoint: str
    units: int


class _Account:
    """The work of one endpoint."""

    __slots__ = ("finished", "outstanding", "rows_per_unit", "unit_s")

    def __init__(self) -> None:
        self.outstanding = 0
        self.finished = 0
        self.unit_s = 0.0
        self.rows_per_unit = 0.0


class AdmissionControl:
    """Admits requests as long as the work before them fits into a share of their time.

    A request of DEFAULT_PRIORITY may find half of its time taken by others; of priority 1, the most urgent, nine tenths, of 9
    one tenth: under load the least urgent are refused first, and among equals the newest.
    """

    def __init__(
        self,
        now: Callable[[], float],
        draw: Callable[[], float],
        *,
        max_pending_bytes: int = 1 << 62,
        max_pending_rows: int = 1 << 30,
    ) -> None:
        """`now` in seconds, `draw` a random number from 0 to 1; the bounds hold for what is admitted and not finished.

        How many rows a body holds is not known before it is read: it is taken from what finished at the same endpoint.
        """
        self._now = now
        self._draw = draw
        self._max_pending_bytes = max_pending_bytes
        self._max_pending_rows = max_pending_rows
        self._accounts: dict[str, _Account] = {}
        self._num_pending = 0
        self._pending_bytes = 0
        self._window_start = now()
        self._num_finished = 0
        self._fewest_pending = 0

    @property
    def num_pending(self) -> int:
        """Requests that were admitted and are not finished."""
        return self._num_pending

    @property
    def wait_s(self) -> float:
        """How long the work that was admitted takes, as far as it is known."""
        wait_s = 0.0
        for account in self._accounts.values():  # a sum over a generator takes three times as long, for each request
            wait_s += account.outstanding * account.unit_s
        return wait_s

    def admit(self, endpoint: str, num_bytes: int, timeout_s: float, priority: int = DEFAULT_PRIORITY) -> Ticket | None:
        """A ticket, or None where the answer would come too late; `priority` from 1 to 9."""
        account = self._accounts.get(endpoint)
        if account is None:
            account = self._accounts[endpoint] = _Account()
        units = num_bytes + REQUEST_BYTES
        if self._num_pending >= MIN_REQUESTS:
            is_late = self.wait_s + units * account.unit_s > SHARES[priority] * timeout_s
            has_rows = account.outstanding * account.rows_per_unit >= self._max_pending_rows
            is_full = has_rows or self._pending_bytes + num_bytes > self._max_pending_bytes
            if is_late or is_full:
                return None
        account.outstanding += units
        self._num_pending += 1
        self._pending_bytes += units
        return Ticket(endpoint, units)

    def finish(self, ticket: Ticket, num_rows: int = 0, *, is_done: bool) -> None:
        """The request is over; `is_done` where its work was done, and not given up on the way. 0 rows: not known."""
        account = self._accounts[ticket.endpoint]
        account.outstanding -= ticket.units
        self._num_pending -= 1
        self._pending_bytes -= ticket.units
        if self._num_pending < self._fewest_pending:
            self._fewest_pending = self._num_pending
        if is_done:
            account.finished += ticket.units
            self._num_finished += 1
        if num_rows:
            account.rows_per_unit += ROWS_RATE * (num_rows / ticket.units - account.rows_per_unit)
        now = self._now()
        elapsed_s = now - self._window_start
        if elapsed_s >= WINDOW_S and (self._num_finished >= MIN_FINISHED or elapsed_s >= MAX_WINDOW_S):
            self._learn(elapsed_s)
            self._window_start = now
            self._num_finished = 0
            self._fewest_pending = self._num_pending

    def retry_after_s(self) -> float:
        """When a refused request may try again."""
        shortest, longest = RETRY_AFTER_S
        return shortest + (longest - shortest) * self._draw()

    def _learn(self, elapsed_s: float) -> None:
        """Correct what a byte takes by what was finished, if work waited all the time."""
        accounts = self._accounts.values()
        total = sum(account.finished for account in accounts)
        if self._fewest_pending >= MIN_REQUESTS // 2 and total:
            for account in accounts:
                if not account.unit_s and account.finished:
                    account.unit_s = elapsed_s / total
            error_s = elapsed_s - sum(account.finished * account.unit_s for account in accounts)
            power = sum(account.finished**2 for account in accounts)
            for account in accounts:
                account.unit_s = max(0.0, account.unit_s + LEARNING_RATE * error_s * account.finished / power)
        for account in accounts:
            account.finished = 0

    def __repr__(self) -> str:
        return f"<AdmissionControl {self._num_pending} requests pending, {self.wait_s:.3f} s of work>"


class RefusalBudget:
    """How many refusals an event loop may send at once each second; what is beyond waits a little.

    A refusal costs some 25 µs. Clients that return at once, whatever Retry-After says, could make a server refuse and do
    nothing else; those within the budget are refused at once, the others `HOLD_S` later.
    """

    HOLD_S = 0.25

    def __init__(self, now: Callable[[], float], per_second: float = 2000.0) -> None:
        self._now = now
        self._per_second = per_second
        self._left = per_second
        self._seen_at = now()

    def delay_s(self) -> float:
        """How long the next refusal waits: 0 within the budget."""
        now = self._now()
        self._left = min(self._per_second, self._left + (now - self._seen_at) * self._per_second)
        self._seen_at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return self.HOLD_S
