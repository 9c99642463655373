"""Every program of an artifact proven legal, within bounded memory whatever the file says."""

from __future__ import annotations

from collections.abc import Callable

from chip.checker import Finding, check
from chip.program import expanded_elements
from cluster.errors import InputError
from interconnect.vectors import check_fabric
from programs.artifact import Artifact


def check_artifact(
    artifact: Artifact, most_elements: int, tell: Callable[[str], None] = lambda _: None
) -> list[tuple[str, Finding]]:
    """(entry point, finding) of all programs and links; ``tell`` gets the entry points' names.

    Raises InputError for a program that expands to more instructions and stream elements than
    ``most_elements``: a few blocks may stand for millions.
    """
    found: list[tuple[str, Finding]] = []
    for name in artifact.programs:
        tell(name)
        each = [artifact.program(name, number) for number in range(artifact.chips)]
        first = {id(program): number for number, program in reversed(list(enumerate(each)))}
        for number in sorted(first.values()):
            elements = expanded_elements(each[number])
            if elements > most_elements:
                raise InputError(
                    f"{name} of chip {number} expands to {elements:,} instructions and stream "
                    f"elements, more than {most_elements:,}: checking it takes memory; raise "
                    "--most-elements if you trust the file"
                )
            findings = check(each[number], artifact.spec, chip=number)
            found += [(name, finding) for finding in findings]
        links = check_fabric(
            artifact.programs[name], artifact.program_of_chip, artifact.cables, artifact.spec
        )
        found += [(name, finding) for finding in links]
    return found
