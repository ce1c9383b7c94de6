"""Which requests are worth beginning: a request that could not be answered in time is refused before any work is done on it.

Decides on values and keeps a small account; does no I/O and knows nothing of HTTP, models or threads. There is one for each
event loop.

The queue in front of a graph bounds rows, but reading and encoding stand before it: without a bound there, under twice its
capacity a server spends its time on bodies whose answers come too late. So the work that was admitted and is not
finished is counted in bytes of bodies, and how many seconds a byte takes is learnt per endpoint and model from what finishes
while work waits. The method is a normalized least-mean-squares filter (Widrow and Hoff, 1960) over short windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
CALM = 64
"""So many requests are admitted in a row before a server counts as refusing none. Under overload admitted and refused ones take
turns, and one that is refused before it is parsed costs a third of one that is parsed first."""
MAX_LEFT_SHARE = 0.3
"""Where more of the requests that end in window after window are given up by their clients, fewer are admitted."""
LEAVING_WINDOWS = 10
"""In so many windows on end: clients that leave all at once, as those of a load generator or of a proxy that ends, say nothing
of how long others wait."""
MAX_PATIENCE_S = 60.0
PATIENCE_GROWTH = 1.05
"""By window in which fewer leave."""
RETURNS_PER_S = 1000.0
"""As many refused requests as may return in a second: Retry-After grows until they do not exceed it."""
RETRY_AFTER_S, MAX_RETRY_AFTER_S = (0.1, 2.0), 10.0
"""Refused requests return within this span, so that they do not come back in one wave; under many its end grows to the second."""
SHARES = tuple(
    MAX_SHARE - (MAX_SHARE - MIN_SHARE) * max(0, priority - 1) / (LEAST_URGENT - 1) for priority in range(LEAST_URGENT + 1)
)
"""By priority: the share of its time that a request may find taken."""


class _Account:
    """The work of one endpoint, or of one model at it."""

    __slots__ = ("finished", "mean_units", "models", "outstanding", "rows", "rows_per_unit", "unit_s")

    def __init__(self) -> None:
        self.outstanding = 0
        self.rows = 0.0
        """Of an endpoint: those that are pending, its models' among them."""
        self.finished = 0
        self.unit_s = 0.0
        self.mean_units = 0.0
        self.rows_per_unit = 0.0
        """Of many requests together: the mean of their rows over the mean of their units."""
        self.models: dict[str, _Account] = {}


class Ticket:
    """An admitted request. `finish` is called once with it."""

    __slots__ = (
        "_control",
        "account",
        "admitted_at",
        "cancel",
        "closed_at",
        "endpoint",
        "is_displaced",
        "num_received",
        "priority",
        "rows",
        "units",
    )

    def __init__(self, control: AdmissionControl, endpoint: _Account, units: int, priority: int, now: float) -> None:
        self._control = control
        self.admitted_at = now
        self.closed_at: float | None = None
        self.endpoint = self.account = endpoint
        self.units = units
        self.rows = units * endpoint.rows_per_unit
        self.priority = priority
        self.cancel: Callable[[], object] | None = None
        """What ends the request when it is displaced; set where it can be ended."""
        self.is_displaced = False
        """Whether its place was given to a more urgent request."""
        self.num_received: int | None = None
        """Bytes of a body that has not come as a whole; None where nothing more is awaited."""

    def await_body(self) -> None:
        """The body has not come yet: as long as that is so the request is no work that others wait for.

        Else a few hundred clients that send slowly, or nothing, would have all others refused.
        """
        self._control.await_body(self)

    def receive(self, num_bytes: int) -> bool:
        """So much more of the awaited body has come; whether there is room for it."""
        return self._control.receive(self, num_bytes)

    def complete_body(self) -> None:
        """The body has come as a whole, whether it was awaited or not."""
        self._control.complete_body(self)

    def assign(self, model: str) -> None:
        """The request is for this model. Where nothing has finished on it yet, its work counts as the endpoint's."""
        account = self.endpoint.models.get(model)
        if account is not None and account is not self.account:
            self._control.move(self, account)

    def grow(self, factor: float, timeout_s: float) -> bool:
        """The request is so many times the work that its size tells; whether there is room for it."""
        return self._control.grow(self, factor, timeout_s)

    def close(self) -> None:
        """The client has closed its side of the connection: it has left, or only sends nothing more.

        While others are refused its place is given to them, and the request is cancelled: it gets no answer but a refusal.
        """
        if self.closed_at is None:
            self._control.close(self)


class AdmissionControl:
    """Admits requests as long as the work before them fits into a share of their time.

    A request of DEFAULT_PRIORITY may find half of its time taken by others; of priority 1, the most urgent, nine tenths, of 9
    one tenth: under load the least urgent are refused first, and among equals the newest. Where even its share is taken, a
    request displaces those that are less urgent, the least urgent and newest first.

    Where clients give up long before their time is over, a queue of that length would hold none but requests that nobody waits
    for when their turn comes: the time that is divided is then the time after which they left.
    """

    def __init__(
        self,
        now: Callable[[], float],
        draw: Callable[[], float],
        *,
        max_pending_bytes: int = 1 << 62,
        max_pending_rows: float = math.inf,
    ) -> None:
        """`now` in seconds, `draw` a random number from 0 to 1; the bounds hold for what is admitted and not finished.

        How many rows a body holds is not known before it is read: it is taken from what finished at the same endpoint. So
        `max_pending_rows` leaves room for an estimate that is a little too large, and for rows that run already.
        """
        self._now = now
        self._draw = draw
        self._max_pending_bytes = max_pending_bytes
        self._max_pending_rows = max_pending_rows
        self._endpoints: dict[str, _Account] = {}
        self._accounts: list[_Account] = []
        self._by_priority: tuple[dict[Ticket, None], ...] = tuple({} for _ in range(LEAST_URGENT + 1))
        self._num_pending = 0
        self._pending_bytes = 0
        self._wait_s = 0.0
        self._window_start = now()
        self._num_finished = 0
        self._fewest_pending = 0
        self._patience_s = math.inf
        self._num_left = self._num_stayed = 0
        self._left_after_s = 0.0
        self._num_leaving_windows = 0
        self._longest_retry_s = RETRY_AFTER_S[1]
        self._num_refused = 0
        self._refusals_since = self._window_start
        self.is_refusing = False
        """Whether one of the last CALM requests that came was refused."""
        self._num_since_refusal = 0

    @property
    def num_pending(self) -> int:
        """Requests that were admitted and are not finished."""
        return self._num_pending

    @property
    def wait_s(self) -> float:
        """How long the work that was admitted takes, as far as it is known."""
        return self._wait_s

    def admit(self, endpoint: str, num_bytes: int, timeout_s: float, priority: int = DEFAULT_PRIORITY) -> Ticket | None:
        """A ticket, or None where the answer would come too late; `priority` from 1 to 9."""
        account = self._endpoints.get(endpoint)
        if account is None:
            account = self._endpoints[endpoint] = self._open_account()
        units = num_bytes + REQUEST_BYTES
        if (
            self._num_pending >= MIN_REQUESTS
            and not self._fits(account, units, timeout_s, priority)
            and not self._displace(account, units, timeout_s, priority)
        ):
            self.is_refusing, self._num_since_refusal = True, 0
            return None
        if self.is_refusing:
            self._num_since_refusal += 1
            self.is_refusing = self._num_since_refusal < CALM
        ticket = Ticket(self, account, units, priority, self._now())
        self._by_priority[priority][ticket] = None
        # As `_count` does, without a call for each request.
        account.outstanding += units
        account.rows += ticket.rows
        self._num_pending += 1
        self._pending_bytes += units
        self._wait_s += units * account.unit_s
        return ticket

    def would_refuse(self, endpoint: str, num_bytes: int, timeout_s: float) -> bool:
        """Whether `admit` would refuse such a request of the default priority, which displaces none."""
        account = self._endpoints.get(endpoint)
        if account is None or any(self._by_priority[DEFAULT_PRIORITY + 1 :]):
            return False
        units = num_bytes + REQUEST_BYTES
        return self._num_pending >= MIN_REQUESTS and not self._fits(account, units, timeout_s, DEFAULT_PRIORITY)

    def finish(
        self, ticket: Ticket, num_rows: int = 0, *, is_done: bool, has_left: bool = False, model: str | None = None
    ) -> None:
        """The request is over; `is_done` where its work was done, and not given up on the way. 0 rows: not known.

        `has_left` where its client did not wait for it. `model` is the one that answered; its requests are then told apart from
        the others at the endpoint.
        """
        if is_done and model is not None and model not in ticket.endpoint.models:
            self._add_model(ticket.endpoint, model)
        account, units = ticket.account, ticket.units
        if ticket.num_received is not None:  # its body never came
            self._pending_bytes -= ticket.num_received
        elif not ticket.is_displaced:
            del self._by_priority[ticket.priority][ticket]
            account.outstanding -= units
            ticket.endpoint.rows -= ticket.rows
            self._num_pending -= 1
            self._pending_bytes -= units
            self._wait_s -= units * account.unit_s
        if self._num_pending < self._fewest_pending:
            self._fewest_pending = self._num_pending
        if is_done:
            account.finished += units
            self._num_finished += 1
        if num_rows:
            # Not the mean of each request's own ratio: where a body's length differs from row to row, that is the larger number.
            account.mean_units += ROWS_RATE * (units - account.mean_units)
            account.rows_per_unit += ROWS_RATE * (num_rows - units * account.rows_per_unit) / account.mean_units
        now = self._now()
        if has_left or ticket.closed_at is not None:
            self._num_left += 1
            self._left_after_s += (ticket.closed_at or now) - ticket.admitted_at
        else:
            self._num_stayed += is_done
        elapsed_s = now - self._window_start
        if elapsed_s >= WINDOW_S and (self._num_finished + self._num_left >= MIN_FINISHED or elapsed_s >= MAX_WINDOW_S):
            self._learn(elapsed_s)
            self._learn_patience(elapsed_s)
            self._window_start = now
            self._num_finished = 0
            self._fewest_pending = self._num_pending

    def await_body(self, ticket: Ticket) -> None:
        """See `Ticket.await_body`."""
        if ticket.num_received is None and not ticket.is_displaced:
            del self._by_priority[ticket.priority][ticket]
            self._count(ticket, -1)
            ticket.num_received = 0
            self._fewest_pending = min(self._fewest_pending, self._num_pending)

    def receive(self, ticket: Ticket, num_bytes: int) -> bool:
        """See `Ticket.receive`."""
        if ticket.num_received is None:
            return True
        ticket.num_received += num_bytes
        self._pending_bytes += num_bytes
        return self._pending_bytes <= self._max_pending_bytes

    def complete_body(self, ticket: Ticket) -> None:
        """See `Ticket.complete_body`."""
        if ticket.num_received is not None:
            self._pending_bytes -= ticket.num_received
            ticket.units = max(ticket.units, ticket.num_received + REQUEST_BYTES)
            ticket.rows = ticket.units * ticket.account.rows_per_unit
            ticket.num_received = None
            self._by_priority[ticket.priority][ticket] = None
            self._count(ticket, 1)

    def move(self, ticket: Ticket, account: _Account) -> None:
        """Count the work of a request in another account; the endpoint's own is then for what is not known to be any model's."""
        if ticket.is_displaced or ticket.num_received is not None:
            return
        endpoint, units = ticket.endpoint, ticket.units
        ticket.account.outstanding -= units
        account.outstanding += units
        self._wait_s += units * (account.unit_s - ticket.account.unit_s)
        ticket.account = account
        rows = units * account.rows_per_unit
        endpoint.rows += rows - ticket.rows
        ticket.rows = rows
        change_s = ROWS_RATE * (account.unit_s - endpoint.unit_s)
        endpoint.unit_s += change_s
        self._wait_s += change_s * endpoint.outstanding
        endpoint.rows_per_unit += ROWS_RATE * (account.rows_per_unit - endpoint.rows_per_unit)

    def grow(self, ticket: Ticket, factor: float, timeout_s: float) -> bool:
        """See `Ticket.grow`."""
        if ticket.is_displaced or ticket.num_received is not None:
            return True
        self._count(ticket, -1)
        units = round(ticket.units * factor)
        has_room = self._num_pending < MIN_REQUESTS or self._fits(ticket.endpoint, units, timeout_s, ticket.priority)
        if has_room:
            ticket.units, ticket.rows = units, ticket.rows * factor
        self._count(ticket, 1)
        return has_room

    def close(self, ticket: Ticket) -> None:
        """See `Ticket.close`."""
        ticket.closed_at = self._now()
        is_waiting = not ticket.is_displaced and ticket.num_received is None
        if ticket.cancel is not None and is_waiting and (self.is_refusing or self._patience_s < math.inf):
            self.displace(ticket)

    def displace(self, ticket: Ticket) -> None:
        """Take back the place of a request that is pending and can be cancelled."""
        assert ticket.cancel is not None
        del self._by_priority[ticket.priority][ticket]
        self._count(ticket, -1)
        ticket.is_displaced = True
        ticket.cancel()

    def retry_after_s(self) -> float:
        """When a refused request may try again; called once for each."""
        self.is_refusing, self._num_since_refusal = True, 0  # also where `would_refuse` said so
        self._num_refused += 1
        now = self._now()
        if (elapsed_s := now - self._refusals_since) >= 1.0:
            growth = min(2.0, max(0.5, self._num_refused / elapsed_s / RETURNS_PER_S))
            self._longest_retry_s = min(MAX_RETRY_AFTER_S, max(RETRY_AFTER_S[1], self._longest_retry_s * growth))
            self._num_refused = 0
            self._refusals_since = now
        shortest = RETRY_AFTER_S[0]
        return shortest + (self._longest_retry_s - shortest) * self._draw()

    def _fits(self, account: _Account, units: int, timeout_s: float, priority: int) -> bool:
        return (
            self._wait_s + units * account.unit_s
            <= SHARES[priority] * (timeout_s if timeout_s < self._patience_s else self._patience_s)
            and account.rows < self._max_pending_rows
            and self._pending_bytes + units <= self._max_pending_bytes
        )

    def _displace(self, account: _Account, units: int, timeout_s: float, priority: int) -> bool:
        """Whether the request has room once less urgent ones have given up theirs; else all of them keep it."""
        displaced: list[Ticket] = []
        for waiting in reversed(self._by_priority[priority + 1 :]):
            for ticket in reversed(waiting):
                if ticket.cancel is None:
                    continue
                self._count(ticket, -1)
                displaced.append(ticket)
                if self._fits(account, units, timeout_s, priority):
                    for each in displaced:
                        self._count(each, 1)
                        self.displace(each)
                    return True
        for ticket in displaced:
            self._count(ticket, 1)
        return False

    def _count(self, ticket: Ticket, number: int) -> None:
        """Count a pending request (1), or count it no longer (-1)."""
        units = number * ticket.units
        ticket.account.outstanding += units
        ticket.endpoint.rows += number * ticket.rows
        self._num_pending += number
        self._pending_bytes += units
        self._wait_s += units * ticket.account.unit_s

    def _open_account(self) -> _Account:
        account = _Account()
        self._accounts.append(account)
        return account

    def _add_model(self, endpoint: _Account, model: str) -> None:
        """The account of a model begins with what is known of the endpoint."""
        account = endpoint.models[model] = self._open_account()
        account.unit_s = endpoint.unit_s
        account.mean_units, account.rows_per_unit = endpoint.mean_units, endpoint.rows_per_unit

    def _learn(self, elapsed_s: float) -> None:
        """Correct what a byte takes by what was finished, if work waited all the time."""
        accounts = [account for account in self._accounts if account.finished]
        total = sum(account.finished for account in accounts)
        if self._fewest_pending >= MIN_REQUESTS // 2 and total:
            for account in accounts:
                if not account.unit_s:
                    account.unit_s = elapsed_s / total
            error_s = elapsed_s - sum(account.finished * account.unit_s for account in accounts)
            power = sum(account.finished**2 for account in accounts)
            for account in accounts:
                account.unit_s = max(0.0, account.unit_s + LEARNING_RATE * error_s * account.finished / power)
        for account in accounts:
            account.finished = 0
        self._wait_s = sum(account.outstanding * account.unit_s for account in self._accounts)

    def _learn_patience(self, elapsed_s: float) -> None:
        """Bound the wait by the time after which clients leave, where many do and go on to; else widen the bound again."""
        if elapsed_s > 2 * MAX_WINDOW_S:
            self._num_leaving_windows = 0  # of a time that is long over
        if self._num_left >= MIN_REQUESTS and self._num_left > MAX_LEFT_SHARE * (self._num_left + self._num_stayed):
            self._num_leaving_windows += 1
            if self._num_leaving_windows >= LEAVING_WINDOWS:
                self._patience_s = min(self._patience_s, self._left_after_s / self._num_left)
        else:
            self._num_leaving_windows = 0 if self._patience_s == math.inf else LEAVING_WINDOWS
            self._patience_s *= PATIENCE_GROWTH
            if self._patience_s > MAX_PATIENCE_S:
                self._patience_s = math.inf
        self._num_left = self._num_stayed = 0
        self._left_after_s = 0.0

    def __repr__(self) -> str:
        return f"<AdmissionControl {self._num_pending} requests pending, {self.wait_s:.3f} s of work>"


class RefusalBudget:
    """How much of a process's time goes into refusing clients that return at once, whatever Retry-After says.

    Refusals of such clients are sent at an even rate, that which takes `share` of the processor time that the process gets; what
    comes faster waits for its turn, `MAX_HOLD_S` at most. So a thousand of them do not make a server refuse and do nothing else.
    The method is the generic cell rate algorithm (ITU-T I.371) with a rate that follows the process.
    """

    MAX_HOLD_S = 2.0
    BURST_S = 0.02
    REFUSAL_S = 40e-6
    """What a refusal costs, processor time of the kernel included."""
    WINDOW_S = 0.05

    def __init__(self, now: Callable[[], float], cpu_s: Callable[[], float], share: float = 0.05) -> None:
        """`now` in seconds, `cpu_s` the processor time of the process so far."""
        self._now = now
        self._cpu_s = cpu_s
        self._share = share
        self._interval_s = self.REFUSAL_S / share
        self._next_at = self._seen_at = now()
        self._seen_cpu_s = cpu_s()

    def delay_s(self) -> float:
        """How long the next refusal waits: 0 within the budget."""
        now = self._now()
        elapsed_s = now - self._seen_at
        if elapsed_s >= self.WINDOW_S:
            cpu_s = self._cpu_s()
            utilization = max(0.05, (cpu_s - self._seen_cpu_s) / elapsed_s)
            self._interval_s = self.REFUSAL_S / (self._share * utilization)
            self._seen_at, self._seen_cpu_s = now, cpu_s
        self._next_at = max(self._next_at, now - self.BURST_S) + self._interval_s
        # Those that wait longest are sent before their turn, and so do not delay the others without end.
        self._next_at = min(self._next_at, now + self.MAX_HOLD_S)
        return max(0.0, self._next_at - now)
