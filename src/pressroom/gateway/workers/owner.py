"""The server's side of its workers: starts and watches them, and is where routes, budgets and figures come together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pressroom.gateway.money.leases import Ask, Hello, Report, Spent
from pressroom.gateway.money.owner import Channel, Owner
from pressroom.gateway.money.wire import KINDS, packed, unpacked
from pressroom.gateway.workers._addresses import bind_shared
from pressroom.gateway.workers._gone import Left, recover
from pressroom.gateway.workers._process import Process
from pressroom.gateway.workers.figures import Figures
from pressroom.kernel import DeployError, LockedError, PressroomError

if TYPE_CHECKING:
    import socket

    from pressroom.gateway.money import Accounts, Budget
    from pressroom.gateway.workers._pipe import Message
    from pressroom.gateway.workers.shared import Mirrored, SharedTable
    from pressroom.kernel import Workspace

_log = logging.getLogger(__name__)

_TICK_S = 0.1
_MONEY_TICKS = 3
# A worker says something every second. One that has not for so long hangs, and makes way for another.
_SILENCE_S = 30.0
# Imports on a busy machine take long.
_START_S = 60.0
# One that ends sooner after its start than this is started again after a pause that doubles, to the longest.
_STEADY_S = 10.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
# Beyond its time to drain, for its last words and rows.
_END_S = 15.0
_AGAIN_S = 0.5
# Workers that cannot be started, at the start of the server, before that is given up.
_FAILURES = 3


@dataclass
class _Slot:
    """A place for a worker, and who has it."""

    number: int
    listening: dict[str, socket.socket]
    process: Process | None = None
    channel: Channel | None = None
    mirror: Mirrored | None = None
    session: str = ""
    names: list[str] = field(default_factory=list)
    listens: bool = False
    failures: int = 0


class Workers:
    """`count` workers behind one address. Made and used on the event loop of the server's own gateway; `bind` first.

    `accounts` has the budgets, and `table` the routes; `ready` says whether everything that should answer does.
    `control`, as `module:Name`, is what each worker makes with its workspace to load models and let them go.
    """

    def __init__(
        self,
        workspace: Workspace,
        table: SharedTable,
        accounts: Accounts,
        *,
        count: int,
        ready: Callable[[], bool],
        budgets: Iterable[Budget] = (),
        control: str = "",
    ) -> None:
        #: Of the workers, to be joined with those of the server's own gateway.
        self.figures = Figures()
        self._workspace = workspace
        self._table = table
        self._accounts = accounts
        self._count = count
        self._ready = ready
        self._control = control
        self._host = ""
        self._server = ("", 0)
        self._slots: list[_Slot] = []
        self._lives: list[asyncio.Task[None]] = []
        self._ticking: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(max_workers=count, thread_name_prefix="worker-recovery")
        self._stopping = False
        self._said_ready = False
        self._all_listen = asyncio.Event()
        # Workers whose rows are not all counted yet, and what those of the others came to.
        self._alive: set[int] = set()
        self._settled: dict[str, tuple[Spent, ...]] = {}
        self._money = Owner(
            accounts,
            settled=lambda session: self._settled.pop(session, ()),
            alive=self._alive.__contains__,
            budgets=budgets,
            expected={},  # of workers of a server before this one none lives: `wait_for_orphans`
        )

    def bind(self, host: str, port: int) -> socket.socket:
        """Take the address; returns one of its sockets. Raises PortInUseError, DeployError."""
        sockets = bind_shared(host, port, self._count)
        self._host = sockets[0].getsockname()[0]
        self._slots = [_Slot(number, {"socket": listening}) for number, listening in enumerate(sockets, start=1)]
        return sockets[0]

    def bind_grpc(self, host: str, port: int) -> str:
        """Take the address of the gRPC door, too, after `bind`; returns it.

        Raises:
            MissingDependencyError: gRPC is not installed.
            PortInUseError, DeployError: the address cannot be had.
        """
        from pressroom.gateway.grpc import need_libraries

        need_libraries()
        sockets = bind_shared(host, port, self._count, setting="grpc_port")
        for slot, listening in zip(self._slots, sockets, strict=True):
            slot.listening["grpc"] = listening
        return f"{host}:{sockets[0].getsockname()[1]}"

    async def start(self, server: tuple[str, int]) -> None:
        """Start them; returns when all take connections. `server` is where the server's own gateway listens.

        Raises:
            DeployError: they do not come up.
        """
        loop = asyncio.get_running_loop()
        self._server = server

        def bring(work: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the gateway is gone
                loop.call_soon_threadsafe(work)

        self._table.bring = bring
        self._ticking = loop.create_task(self._tick())
        self._lives = [loop.create_task(self._live(slot)) for slot in self._slots]
        opened = loop.create_task(self._all_listen.wait())
        try:
            done, _ = await asyncio.wait([opened, *self._lives], timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            if opened not in done:
                raise DeployError(
                    "the workers of the gateway do not come up", hint="The server's log says what they wrote."
                )
        finally:
            opened.cancel()

    def renew(self, budgets: Iterable[Budget]) -> None:
        """These are the budgets from now on, here and at every worker."""
        self._money.renew(budgets)

    async def stop(self, drain_s: float) -> None:
        """Take no more connections, let what runs end for `drain_s` seconds, and return when no process is left."""
        self._stopping = True
        await _cancel(self._lives)  # none is started any more
        for slot in self._slots:
            for listening in slot.listening.values():
                listening.close()
            if slot.process is not None:
                slot.process.send(["stop", drain_s])
        ends = [slot.process.end(within_s=drain_s + _END_S) for slot in self._slots if slot.process is not None]
        await asyncio.gather(*ends)
        if self._ticking is not None:
            await _cancel([self._ticking])
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._table.bring = None

    @property
    def pids(self) -> list[int]:
        """The processes that run, by their place."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    # One worker after another in each place.

    async def _live(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        recovered: asyncio.Future[None] | None = None
        while True:
            began = loop.time()
            try:
                process = await self._start(slot)
            except OSError as error:
                _log.error("worker %d cannot be started: %s", slot.number, error)
                process = None
            if process is not None:
                if recovered is not None:
                    await recovered
                process.send(["begin"])
                await process.gone.wait()
                recovered = await self._bury(slot, process)
            if self._stopping:
                return
            slot.failures = 0 if loop.time() - began >= _STEADY_S else slot.failures + 1
            if slot.failures >= _FAILURES and not self._all_listen.is_set():
                return  # the server does not start: `start` says so
            if slot.failures > 1:
                await asyncio.sleep(min(_PAUSE_S * 2 ** (slot.failures - 2), _LONGEST_PAUSE_S))

    async def _start(self, slot: _Slot) -> Process:
        spec = {
            "number": slot.number,
            "workspace": str(self._workspace.root),
            "host": self._host,
            "server": list(self._server),
            "control": self._control,
        }
        process = await Process.start(spec, slot.listening, lambda process, message: self._hear(slot, process, message))
        slot.process = process
        self._alive.add(process.pid)
        slot.channel = self._money.open(lambda message: process.send(packed(message)))
        return process

    async def _bury(self, slot: _Slot, process: Process) -> asyncio.Future[None]:
        """The process is gone, or of no use any more. What is given back is done when its rows are counted."""
        status = await process.end(within_s=_END_S if self._stopping else 0.0)
        if not self._stopping:
            _log.warning(
                "worker %d (process %d) has ended with %d; another takes its place", slot.number, process.pid, status
            )
        self.figures.gone(slot.number)
        session, names = slot.session, slot.names
        if slot.channel is not None:
            slot.channel.close()
        if slot.mirror is not None:
            self._table.part(slot.mirror)
        slot.process = slot.channel = slot.mirror = None
        slot.session, slot.names, slot.listens = "", [], False
        return asyncio.ensure_future(self._recover(slot.number, process.pid, session, names))

    async def _recover(self, number: int, pid: int, session: str, names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        if not session:
            self._alive.discard(pid)  # it has not come so far as to answer anything
            return
        pause = _AGAIN_S
        while not self._stopping:
            try:
                left = await loop.run_in_executor(self._threads, recover, self._workspace, number, names)
            except LockedError:
                _log.debug("the journal of worker %d is locked", number, exc_info=True)
            except PressroomError as error:
                _log.error("the journal of worker %d cannot be recovered yet: %s", number, error)
            except Exception:  # the edge of a task: its successor waits for this, and a later try may succeed  # noqa: BLE001
                _log.exception("the journal of worker %d cannot be recovered yet", number)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._take(left, pid, session)
                return
            await asyncio.sleep(pause)

    def _take(self, left: Left, pid: int, session: str) -> None:
        """Its rows are known: what it had settled counts, what was lost is held for a while, the rest is free again."""
        self._accounts.hold_lost(left.lost)
        self._settled[session] = left.settled
        self._alive.discard(pid)
        self._money.tick()
        self._settled.pop(session, None)

    # What they say.

    def _hear(self, slot: _Slot, process: Process, message: Message) -> None:
        if slot.process is not process:
            return
        kind = message[0]
        if kind in KINDS:
            found = unpacked(message)
            if not isinstance(found, Hello | Ask | Report):
                raise ValueError("an owner's message from a worker")
            assert slot.channel is not None
            slot.channel.receive(found)
        elif kind in ("has", "loads"):
            if slot.mirror is not None:
                self._table.said(slot.mirror, message)
        elif kind == "opened":
            slot.session, slot.names = str(message[1]), [str(name) for name in message[2]]
            slot.mirror = self._table.join(process.send)
            process.send(["ready", self._said_ready])
            process.send(["routed"])
        elif kind == "listens":
            slot.listens = True
            if all(each.listens for each in self._slots):
                self._all_listen.set()
        elif kind == "figures":
            self.figures.said(slot.number, message[1])
        elif kind != "here":
            raise ValueError(f"a message {kind!r} from a worker")

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        turn = 0
        while True:
            await asyncio.sleep(_TICK_S)
            turn += 1
            try:
                self._look(loop.time(), money=turn % _MONEY_TICKS == 0)
            except Exception:  # the edge of a task: the next look may succeed  # noqa: BLE001
                _log.exception("the workers cannot be looked after")

    def _look(self, now: float, *, money: bool) -> None:
        ready = self._ready()
        if ready != self._said_ready:
            self._said_ready = ready
            self._tell(["ready", ready])
        if money:
            self._money.tick()
        for slot in self._slots:
            process = slot.process
            if process is None or process.gone.is_set():  # it is being ended
                continue
            if now - process.heard >= (_SILENCE_S if slot.listens else _START_S):
                _log.error("worker %d (process %d) does not say anything any more", slot.number, process.pid)
                process.gone.set()

    def _tell(self, message: list[Any]) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.session:
                slot.process.send(message)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            _log.error("a task of the workers has failed", exc_info=result)
