"""``--save`` and ``--report``, checked before a run and carried out after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError
from cluster.report.run_file import Run, save_run
from cluster.whole_files import check_writable


@dataclass(frozen=True)
class ReportRequest:
    """Where the run file and the page go; either may be absent."""

    save: Path | None
    page: Path | None

    @property
    def wanted(self) -> bool:
        """Whether anything is to be written."""
        return self.save is not None or self.page is not None

    def finish(self, make: Callable[[], Run]) -> None:
        """Make the run and write what was asked for."""
        if not self.wanted:
            return
        run = make()
        if self.save is not None:
            save_run(run, self.save)
        if self.page is not None:
            from cluster.report.page import write_page

            write_page(run, self.page)


def report_request(save: Path | None, page: Path | None) -> ReportRequest:
    """The two options, refused where their files could not be written."""
    check_page(page, "--report")
    if save is not None:
        if save.suffix != ".json":
            raise InputError(f"--save {save}: use a name that ends in .json")
        check_writable(save)
    return ReportRequest(save, page)


def check_page(page: Path | None, option: str) -> None:
    """Refuse a page that could not be written."""
    if page is not None:
        if page.suffix not in (".html", ".htm"):
            raise InputError(f"{option} {page}: use a name that ends in .html")
        check_writable(page)
