"""The books of one server: keys, budgets, prices and the ledger of its workspace, kept up to date while it runs.

What people change with `press` is in the database. A thread looks there twice a second and brings what changed to the
event loop, where requests are admitted and written down without asking anybody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pressroom.cost import BEAT_S, Powered, Price, PriceError, Prices
from pressroom.gateway._grant import Books
from pressroom.gateway.access import Access
from pressroom.gateway.ledger import corrections, newest_correction, open_ledger
from pressroom.gateway.money import Accounts, Budgets
from pressroom.kernel import Keys, NotFoundError, PressroomError, Ref, Workspace, this_machine

if TYPE_CHECKING:
    from pressroom.gateway.money import Budget
    from pressroom.gateway.routes import Route, RouteTable

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
_JOIN_S = 10.0


class Bookkeeping:
    """Made before the gateway opens, `start`ed on its event loop, `close`d after it.

    `overrides` says what a deployment itself says of the price of one of its routes (None: nothing).

    Raises:
        LockedError: another process writes the ledger of this workspace.
        WorkspaceError: the database cannot be used, or the ledger's folder cannot be written.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        overrides: Callable[[Route], Mapping[str, Any] | None] = lambda route: None,
    ) -> None:
        from pressroom.registry import Registry

        settings = workspace.settings
        self._workspace = workspace
        # Made once: whoever makes one looks after its tables, and would wait for a database that is locked.
        self._registry = Registry(workspace)
        self._overrides = overrides
        self._prices = Prices(workspace)
        self._price_state = self._prices.state()
        self._budgets = Budgets(workspace)
        self._powered = Powered(workspace, machine=str(this_machine()))
        self.access = Access(Keys(workspace), require_key=settings.gateway.require_key)
        self.access.renew()
        self.ledger = open_ledger(workspace)
        try:
            self._open(workspace)
        except BaseException:  # whoever tries again must find the ledger free
            self.ledger.stop()
            raise
        self._routes: RouteTable | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="bookkeeping", daemon=True)

    def _open(self, workspace: Workspace) -> None:
        """Take up where the last server ended."""
        lost = self.ledger.recover()
        self._changes = self._budgets.changes()
        #: The budgets as they were at the start, and who hears of new ones on the event loop.
        self.budgets = self._budgets.list()
        self.treasury = Accounts(self.budgets)
        self.renewed: Callable[[Iterable[Budget]], None] = self.treasury.renew
        self._corrected = -1
        while self._corrected != (newest := newest_correction(workspace)):
            self._corrected = newest  # one that is made meanwhile is in the sums, or is not
            self.treasury.load(self._budgets.spending())
        self.treasury.hold_lost(lost)
        self.ledger.start()
        self.books = Books.of(workspace.settings.ledger, self.treasury, self.ledger)

    def price(self, route: Route) -> Price | None:
        """What the tokens of a route cost; None where nobody knows. Reads the database: for a change of routes."""
        override = self._overrides(route)
        metadata: Mapping[str, Any] = {}
        try:
            wanted = Ref.parse(route.ref)
            if route.digest:
                wanted = Ref(wanted.name, wanted.version, route.digest)
            metadata = self._registry.get(wanted).metadata
        except NotFoundError:
            if route.elsewhere and override is None:
                return None  # a vendor is never free for want of a version
        except PressroomError as error:
            _log.error("the price of %s cannot be looked up: %s", route.model, error)
            return None
        try:
            return self._prices.of(metadata, override, name=route.ref.partition(":")[0])
        except PriceError as error:
            _log.error("the price of %s: %s", route.model, error)
            return None

    def start(self, routes: RouteTable) -> None:
        """Follow what people change. Called on the event loop of the gateway."""
        self._routes = routes
        self._loop = asyncio.get_running_loop()
        self.access.start(self._loop)
        self._thread.start()

    def close(self) -> None:
        """Write down what is left, and stop. What the database does not take stays in the journal."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self.access.close()
        if not self.ledger.stop():
            _log.warning("rows of the ledger are not in the database yet; the next start brings them there")

    def _look_after(self) -> None:
        beaten = 0.0
        while True:
            now = time.monotonic()
            if not beaten or now - beaten >= BEAT_S:
                beaten = now
                self._powered.beat()
                self._on_loop(self.treasury.expire)  # where no traffic does it
            try:
                self._look()
            except PressroomError as error:
                _log.error("budgets and prices cannot be looked up, what was known stays: %s", error)
            except Exception:  # the edge of a thread: the next look may succeed  # noqa: BLE001
                _log.exception("budgets and prices cannot be looked up")
            if self._ended.wait(_LOOK_S):
                self._powered.beat()
                return

    def _look(self) -> None:
        changes = self._budgets.changes()
        if changes != self._changes:
            budgets = self._budgets.list()
            self._on_loop(lambda: self.renewed(budgets))
            self._changes = changes
        for one in corrections(self._workspace, after=self._corrected):
            self._on_loop(partial(self.treasury.adjust, one.key, one.team, one.model, at=one.at, nano_usd=one.nano_usd))
            self._corrected = one.number
        state = self._prices.state()
        if state != self._price_state:
            assert self._routes is not None
            self._routes.reprice()
            self._price_state = state

    def _on_loop(self, work: Callable[[], object]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: the gateway is gone
            self._loop.call_soon_threadsafe(work)
