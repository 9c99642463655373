from .from_experiments import disaggregated_run, load_run, speculative_run
from .from_launches import collective_run, generation_run, launch_run
from .page import write_page
from .request import check_page, report_request
from .run_file import read_run

__all__ = [
    "check_page",
    "collective_run",
    "disaggregated_run",
    "generation_run",
    "launch_run",
    "load_run",
    "read_run",
    "report_request",
    "speculative_run",
    "write_page",
]
