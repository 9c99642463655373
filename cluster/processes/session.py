"""The chip actors of one run: files for them, memory to meet in, their start and their end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chip.engine import save_interpreter, warm_up
from cluster.processes.group import GroupPlan, layout_of, split_chips
from cluster.processes.leftovers import hold, release
from cluster.processes.linked_files import Linking
from cluster.processes.ray_session import check_reachable, open_ray
from cluster.processes.snapshots import SNAPSHOT_LAUNCHES, snapshot_directory
from cluster.processes.supervision import Supervisor
from cluster.processes.waiting import cores
from programs.artifact import Artifact, save
from programs.decoder import ChipImages, PartitionedModel
from programs.faults import FaultPlan, FaultSetting

#: What the first run of an installation waits for, and every one that finds no kernels.
COMPILING = "compiling kernels (a minute or two the first time, then kept)"


@dataclass(frozen=True)
class Placement:
    """Where chips run: chips per process, Ray's address (None: private), or all in this process.

    snapshot_launches: launches between two snapshots of every process, 0 for none.  faults: what
    befalls the modelled machine.
    """

    chips_per_actor: int = 1
    address: str | None = None
    in_process: bool = False
    snapshot_launches: int = SNAPSHOT_LAUNCHES
    faults: FaultPlan | None = None

    def setting(self, artifact: Artifact) -> FaultSetting | None:
        """The faults of a run of ``artifact``; FaultPlanError if they are not its."""
        return None if self.faults is None else FaultSetting.of(self.faults, artifact)


def chips_per_actor(chips: int, asked: int | None) -> int:
    """``asked``, or for None as few chips per process as leave each a core of its own.

    More processes than cores wait for each other: a run then takes several times as long.
    """
    return min(asked, chips) if asked is not None else -(-chips // cores())


def load_kernels(phase: Callable[[str], None]) -> None:
    """Compile what linking and running need, or load it; phase: told what goes on."""
    phase(COMPILING)
    warm_up()


@contextlib.contextmanager
def chip_actors(
    artifact: Artifact,
    placement: Placement,
    phase: Callable[[str], None],
    model: PartitionedModel | None = None,
    images: ChipImages | None = None,
    entries: Sequence[str] = (),
) -> Iterator[Supervisor]:
    """The actors of a run, one per group of chips, under a supervisor that replaces the dead.

    phase: told what goes on.  model: as for ``Host``.  images: lets every actor make those of its
    own chips, which ``artifact`` then lacks.  entries: entry points in the order in which they may
    be launched: see ``Linking``.  Files, shared memory and actors are gone afterwards.
    """
    check_reachable(placement.address)  # before kernels are compiled, which takes minutes
    groups = split_chips(artifact.chips, placement.chips_per_actor)
    faults = placement.setting(artifact)
    # One process compiles the kernels before all of them would at once.
    load_kernels(phase)
    phase("starting Ray")
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="lpu-chips-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        hold(directory)
        stack.callback(release, directory)
        paths = _save_groups(artifact, groups, directory)
        interpreter = directory / "interpreter.o"
        saved = save_interpreter(interpreter)
        snapshots = stack.enter_context(snapshot_directory())
        linking = Linking(artifact, groups, entries, directory)
        stack.callback(linking.stop)
        light = None if model is None else replace(model, _built={})
        plans = [
            GroupPlan(
                paths[number],
                tuple(chips),
                number,
                snapshots,
                placement.snapshot_launches,
                light,
                faults,
                None if images is None else images.unread(),
                linking.files,
                interpreter if saved else None,
            )
            for number, chips in enumerate(groups)
        ]
        where = stack.enter_context(open_ray(placement.address, len(groups) + 1))
        yield stack.enter_context(Supervisor(plans, layout_of(artifact, len(groups)), where, phase))


def _save_groups(artifact: Artifact, groups: list[range], directory: Path) -> list[Path]:
    """One file per group in ``directory``, holding the memory images of its own chips only."""
    paths = []
    for number, chips in enumerate(groups):
        own = [image if c in chips else [] for c, image in enumerate(artifact.memory)]
        paths.append(directory / f"group-{number}.lpu")
        save(replace(artifact, memory=own, files={}), paths[-1])
    return paths
