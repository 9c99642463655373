"""Programs that several actors have, linked once: by a thread of the driver, for all of them.

The thread takes entry points in the order of their launches, while Ray and the actors start and
work, and nobody waits for all of them.  A program that it has not come to, that does not link or
finds no room is linked by every actor that needs it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread

from chip.linking import LinkedProgram, link, load_linked, save_linked
from chip.spec import ChipSpec
from programs.artifact import Artifact

LOOK_SECONDS = 0.005
#: Far more than a program takes: an actor then links it itself.
LONGEST_WAIT_SECONDS = 120.0


def _mark(path: Path) -> Path:
    """What lies beside the place of a file while its program is being linked."""
    return path.with_suffix(".linking")


@dataclass(frozen=True)
class LinkedFiles:
    """Where linked programs lie, or will, by entry point and program number."""

    paths: Mapping[tuple[str, int], Path] = field(default_factory=dict)

    def read(self, entry: str, number: int, spec: ChipSpec) -> LinkedProgram | None:
        """The program, waited for while it is being linked; None where there is none to be read."""
        path = self.paths.get((entry, number))
        if path is None:
            return None
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        while not path.exists() and _mark(path).exists() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        return load_linked(path, spec)


class Linking:
    """A thread that links what several of the groups ``groups`` of chips have, into ``directory``.

    entries: entry points in the order of their launches.
    """

    def __init__(
        self,
        artifact: Artifact,
        groups: Sequence[Sequence[int]],
        entries: Sequence[str],
        directory: Path,
    ) -> None:
        program_of_chip = artifact.program_of_chip
        having = Counter(n for chips in groups for n in {program_of_chip[c] for c in chips})
        shared = [(entry, n) for entry in entries for n, count in having.items() if count > 1]
        self.files = LinkedFiles(
            {key: directory / f"linked-{number}.npz" for number, key in enumerate(shared)}
        )
        self._artifact = artifact
        self._stopped = False
        self._writing = Lock()
        # A daemon: whoever ends the run does not wait for a program that is being linked.
        self.thread = Thread(target=self._work, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Nothing more is linked, and nothing written once this returns."""
        with self._writing:
            self._stopped = True

    def _work(self) -> None:
        for (entry, number), path in self.files.paths.items():
            # Whatever goes wrong: the actors link it themselves, and tell of it if it is theirs.
            with contextlib.suppress(Exception):
                self._link(entry, number, path)

    def _link(self, entry: str, number: int, path: Path) -> None:
        with self._writing:
            if self._stopped:
                return
            _mark(path).touch()
        try:
            linked = link(self._artifact.programs[entry][number], self._artifact.spec)
            with self._writing:
                if not self._stopped:
                    save_linked(linked, path)
        finally:
            _mark(path).unlink(missing_ok=True)
