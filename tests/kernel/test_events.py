"""Events: who hears what, in which order, and that a bad listener disturbs nobody."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import pytest

from pressroom.kernel import Event, Events, Note, Progress


@dataclass(frozen=True, slots=True)
class Special(Note):
    pass


def test_a_listener_hears_its_kind_and_what_is_below() -> None:
    events, heard = Events(), []
    events.subscribe(Note, heard.append)
    for event in (Note("a"), Progress("pull", 1, 2), Special("b"), Event()):
        events.emit(event)
    assert heard == [Note("a"), Special("b")]


def test_listeners_hear_in_the_order_they_came_in_the_thread_that_spoke() -> None:
    events, heard = Events(), []
    for name in "ab":
        events.subscribe(Event, lambda _, name=name: heard.append((name, threading.current_thread())))
    speaker = threading.Thread(target=lambda: events.emit(Note("x")))
    speaker.start()
    speaker.join()
    assert heard == [("a", speaker), ("b", speaker)]


def test_nobody_listens_after_leaving() -> None:
    events, heard = Events(), []
    leave, stay = events.subscribe(Note, heard.append), []
    events.subscribe(Note, stay.append)
    leave()
    leave()
    events.emit(Note("x"))
    assert (heard, stay) == ([], [Note("x")])


def test_leaving_takes_only_ones_own_place() -> None:
    """The same function may listen twice."""
    events, heard = Events(), []
    leave = events.subscribe(Note, heard.append)
    events.subscribe(Note, heard.append)
    leave()
    events.emit(Note("x"))
    assert heard == [Note("x")]


def test_a_listener_that_fails_is_logged_and_the_others_hear(caplog: pytest.LogCaptureFixture) -> None:
    events, heard = Events(), []

    def fail(event: Event) -> None:
        raise ValueError("a bad listener")

    events.subscribe(Note, fail)
    events.subscribe(Note, heard.append)
    with caplog.at_level(logging.ERROR):
        events.emit(Note("x"))
    assert heard == [Note("x")]
    assert "a bad listener" in caplog.text


def test_subscribing_while_an_event_is_told() -> None:
    events, heard = Events(), []

    def join_in(event: Note) -> None:
        events.subscribe(Note, heard.append)

    leave = events.subscribe(Note, join_in)
    events.emit(Note("first"))
    leave()
    assert heard == []
    events.emit(Note("second"))
    assert heard == [Note("second")]


def test_many_threads_come_and_go() -> None:
    events, heard = Events(), []
    events.subscribe(Note, heard.append)

    def come_and_go() -> None:
        for _ in range(200):
            events.subscribe(Progress, heard.append)()
            events.emit(Note("x"))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 800
    events.emit(Progress("pull", 1))
    assert len(heard) == 800, "everyone who came has left"
