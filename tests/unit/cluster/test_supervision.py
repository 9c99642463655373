"""Every way a supervised run is given up, what the last line says, and what is replaced before.

Ray's processes are stand-ins that live and die by a script; the supervisor, the shared memory and
the snapshots' files are the real ones.  The runs over real processes are in ``test_faults.py`` and
``tests/long/chaos``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest
import ray

from cluster.errors import RunError
from cluster.processes import GroupPlan, MappingError, SharedMapping, Supervisor, supervision
from cluster.processes.actors import Readiness
from cluster.processes.group import Ticket
from cluster.processes.mapping import MappingLayout
from cluster.processes.supervision import MOST_FRUITLESS, MOST_REFUSED

#: No process has this number: Linux' largest is 2**22.
NOBODY = 2**22 + 1
NEVER = object()

Script = Callable[["Actor"], object]


def died() -> ray.exceptions.RayError:
    return ray.exceptions.RayError("the actor is dead:\nkilled")


def failed(cause: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("generate", "Traceback ...\nRunError", cause)


class Call:
    """What ``remote`` gives; its outcome is there when somebody waits: a result, an error to
    raise, or NEVER.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    @cached_property
    def outcome(self) -> object:
        return self._work()


class Method:
    def __init__(self, answer: Callable[..., object]) -> None:
        self._answer = answer

    def remote(self, *arguments: object) -> Call:
        return Call(lambda: self._answer(*arguments))


class Actor:
    """An actor of a group; ``number`` counts the group's actors, from 0."""

    def __init__(self, group: int, number: int, crew: Crew) -> None:
        self.group, self.number, self.crew = group, number, crew
        self.tickets: list[Ticket] = []
        self.ready = Method(self._ready)
        self.generate = Method(lambda: crew.work(self))

    def _ready(self, ticket: Ticket) -> object:
        self.tickets.append(ticket)
        return self.crew.starting(self)

    @property
    def mapping(self) -> SharedMapping:
        ticket = self.tickets[-1]
        return SharedMapping.attach(ticket.mapping, ticket.layout, ticket.token)


class Crew:
    """Two groups of stand-ins and what becomes of them."""

    def __init__(self, patch: pytest.MonkeyPatch, snapshots: Path) -> None:
        self.actors: list[list[Actor]] = [[], []]
        self.killed: list[object] = []
        self.work: Script = lambda actor: f"result of {actor.group}"
        self.starting: Script = lambda actor: Readiness(NOBODY, None, {actor.group: 320})
        self.snapshots = snapshots
        patch.setattr("cluster.processes.clock.start_clock", lambda groups, where: object())
        patch.setattr("cluster.processes.actors.start_chips", self._start)
        patch.setattr("ray.kill", self.killed.append)
        patch.setattr("ray.get", self._get)
        patch.setattr("ray.wait", self._wait)

    def _start(self, plan: GroupPlan, clock: object, where: object) -> Actor:
        own = self.actors[plan.group]
        own.append(Actor(plan.group, len(own), self))
        return own[-1]

    @staticmethod
    def _get(call: Call) -> object:
        assert call.outcome is not NEVER
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    @staticmethod
    def _wait(calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        done = next((call for call in calls if call.outcome is not NEVER), None)
        return ([] if done is None else [done]), [call for call in calls if call is not done]

    def supervisor(self) -> Supervisor:
        plans = [GroupPlan(Path("none"), (g,), g, self.snapshots, 0) for g in range(2)]
        return Supervisor(plans, MappingLayout(processes=2, chips=2, values=0, rings=0), None)

    def snapshot(self, group: int, launch: int) -> None:
        (self.snapshots / f"group-{group}-launch-{launch}.snapshot").touch()


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Crew:
    monkeypatch.setattr(supervision, "STOP_SECONDS", 0.05)
    return Crew(monkeypatch, tmp_path)


def test_results_come_by_group_and_all_actors_are_ended(crew: Crew) -> None:
    with crew.supervisor() as supervisor:
        assert supervisor.run("generate") == ["result of 0", "result of 1"]
        assert supervisor.recoveries == [] and supervisor.image_bytes == {0: 320, 1: 320}
        assert supervisor.processes == [NOBODY, NOBODY] and supervisor.refused == (0, 0)
        assert supervisor.mapping is not None and supervisor.mapping.path is not None
        left = supervisor.mapping.path
        assert left.exists()
    assert not left.exists()
    assert crew.killed == [crew.actors[0][0], crew.actors[1][0], supervisor.clock]


def test_a_dead_actor_is_replaced_and_all_go_on_from_the_common_snapshot(crew: Crew) -> None:
    crew.snapshot(0, 32)
    crew.snapshot(0, 64)
    crew.snapshot(1, 32)
    crew.snapshot(1, 96)
    crew.work = lambda actor: died() if (actor.group, actor.number) == (1, 0) else actor.number
    with crew.supervisor() as supervisor:
        assert supervisor.run("generate") == [0, 1]
        (recovery,) = supervisor.recoveries
        assert (recovery.groups, recovery.launch) == ((1,), 32)
    (stayed,), (first, second) = crew.actors
    assert [t.launch for t in stayed.tickets] == [32, 32]  # here the first epoch found them too
    assert len(first.tickets) == 1 and second.tickets == stayed.tickets[1:]
    assert stayed.tickets[0].token != stayed.tickets[1].token


def test_an_actor_that_dies_on_entering_is_replaced_at_once(crew: Crew) -> None:
    def starting(actor: Actor) -> object:
        return died() if (actor.group, actor.number) == (0, 0) else Readiness(NOBODY, None, {})

    crew.starting = starting
    with crew.supervisor() as supervisor:
        supervisor.run("generate")
    assert [len(own) for own in crew.actors] == [2, 1]


def test_a_survivor_that_does_not_stop_is_replaced_like_a_dead_one(crew: Crew) -> None:
    """One dies, the other hangs although its epoch was given up."""

    def work(actor: Actor) -> object:
        if actor.number:
            return actor.number
        return died() if actor.group == 0 else NEVER

    crew.work = work
    polls: list[bool] = []
    with crew.supervisor() as supervisor:

        def poll() -> None:
            polls.append(supervisor.mapping is None)  # the survivors have been told

        assert supervisor.run("generate", poll=poll) == [1, 1]
        assert [r.groups for r in supervisor.recoveries] == [(0, 1)]
    assert polls[0] and len(polls) > 1


def test_what_is_left_of_a_lost_process_is_ended_first(crew: Crew) -> None:
    """Ray called the first actor dead, and its process was still there."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"]) as process:

        def starting(actor: Actor) -> object:
            if actor.group == 0 and actor.number == 1:
                assert process.wait(5) == -9
            left = (actor.group, actor.number) == (0, 0)
            return Readiness(process.pid if left else NOBODY, None, {})

        crew.starting = starting
        crew.work = lambda a: died() if (a.group, a.number) == (0, 0) else a.number
        with crew.supervisor() as supervisor:
            assert supervisor.run("generate") == [1, 0]
        assert process.poll() == -9


# --- given up -------------------------------------------------------------------------------------


def given_up(crew: Crew) -> str:
    with crew.supervisor() as supervisor, pytest.raises(RunError) as caught:
        supervisor.run("generate")
    return str(caught.value)


def test_a_failure_that_is_no_loss_ends_the_run_with_its_text(crew: Crew) -> None:
    """The other, which stopped because of it, is not replaced; neither is one that hangs."""
    for other in (None, NEVER):
        crew.work = lambda a, other=other: (  # type: ignore[misc]
            failed(RunError("chip 3 retired at cycle 7,\nnot at 8")) if a.group else other
        )
        assert given_up(crew) == "chip 3 retired at cycle 7, not at 8"
        assert [len(own) for own in crew.actors] in ([1, 1], [2, 2])


def test_a_fault_that_returns_is_given_up_after_ten_times(crew: Crew) -> None:
    crew.work = lambda actor: died() if actor.group else None
    said = given_up(crew)
    assert said.startswith(
        f"an actor died again and again ({MOST_FRUITLESS} times since launch 0): "
    )
    assert "the actor is dead: killed" in said and "\n" not in said
    assert [len(own) for own in crew.actors] == [1, 1 + MOST_FRUITLESS]


def test_newer_snapshots_are_no_fruitless_recoveries(crew: Crew) -> None:
    """Fifteen deaths, a snapshot of all before every fifth: never ten without a newer one."""

    def work(actor: Actor) -> object:
        if actor.number % 5 == 4:
            for group in range(2):
                crew.snapshot(group, 32 * actor.number)
        return died() if actor.group and actor.number < 15 else actor.number

    crew.work = work
    with crew.supervisor() as supervisor:
        assert supervisor.run("generate") == [0, 15]
        # launch 0 four times, then what the fifth, tenth and fifteenth left
        found = [recovery.launch for recovery in supervisor.recoveries]
    assert found == [0] * 4 + [128] * 5 + [288] * 5 + [448]


def test_strangers_that_go_on_are_given_up(crew: Crew) -> None:
    """Each epoch ends by 40 vectors that were refused: more than a hundred in the third."""

    def work(actor: Actor) -> object:
        if actor.group == 0:
            for _ in range(40):
                actor.mapping.refuse_vector()
        return None

    crew.work = work
    assert MOST_REFUSED == 100
    assert given_up(crew) == (
        "refused again and again (120 times): someone else writes into the run's memory"
    )
    assert [len(actor.tickets) for (actor,) in crew.actors] == [3, 3]  # nobody was replaced


def test_attachments_of_strangers_count_as_well(crew: Crew) -> None:
    def work(actor: Actor) -> object:
        ticket = actor.tickets[-1]
        for _ in range(101):
            with pytest.raises(MappingError):
                SharedMapping.attach(ticket.mapping, ticket.layout, bytes(16))
        return None

    crew.work = work
    assert given_up(crew).startswith("refused again and again (202 times)")


def test_a_run_that_nobody_lost_or_disturbed_is_given_up(crew: Crew) -> None:
    crew.work = lambda actor: None if actor.group else "result"
    assert given_up(crew) == "the run was given up, though no process was lost"


@pytest.mark.parametrize(
    "answer",
    [
        failed(ValueError("no such\nfile")),
        Readiness(NOBODY, "no such file", {}),
    ],
    ids=["raised", "said"],
)
def test_an_actor_that_cannot_start_ends_the_run(crew: Crew, answer: object) -> None:
    crew.starting = lambda actor: answer if actor.group else Readiness(NOBODY, None, {})
    with pytest.raises(RunError, match=r"^an actor did not start: no such file$"):
        crew.supervisor().__enter__()
    assert len(crew.killed) == 3  # both actors and the clock


def test_a_second_run_begins_without_the_first_one_s_snapshots(crew: Crew) -> None:
    with crew.supervisor() as supervisor:
        supervisor.run("generate")
        crew.snapshot(0, 32)
        crew.snapshot(1, 32)
        crew.work = lambda a: died() if (a.group, a.number) == (0, 0) else a.number
        assert supervisor.run("generate") == [1, 0]
        assert [r.launch for r in supervisor.recoveries] == [0]
        assert [t.run for t in crew.actors[1][0].tickets] == [1, 2, 2]


def test_chips_are_kept_only_if_every_group_ended_the_run_before(crew: Crew) -> None:
    """After a failure one group may have seen a whole text and another nothing of it."""
    with crew.supervisor() as supervisor:
        supervisor.run("generate", keep=True)
        supervisor.run("generate", keep=True)
        crew.work = lambda actor: failed(RunError("a chip stopped")) if actor.group else "whole"
        with pytest.raises(RunError, match="a chip stopped"):
            supervisor.run("generate", keep=True)
        crew.work = lambda actor: "whole"
        supervisor.run("generate", keep=True)
        supervisor.run("generate", keep=True)
        supervisor.run("generate")
        supervisor.run("generate", keep=True)
    for (actor,) in crew.actors:
        # The first run begins with new chips, whatever is asked; the fourth follows the failure.
        assert [t.keep for t in actor.tickets] == [False, True, True, False, True, False, True]
