"""How many hostile inputs the readers get: few in the suite, the same each time; many by night.

`LDM_FUZZ_CASES` is how many each test gets (`make fuzz` sets it); then they are new each time.
`LDM_FUZZ_LEAST` is how many there must be in all for the run to count.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.watch import cases

IN_THE_SUITE = 20
ASKED = int(os.environ.get("LDM_FUZZ_CASES", "0"))
LEAST = int(os.environ.get("LDM_FUZZ_LEAST", "0"))

settings.register_profile(
    "fuzz",
    max_examples=ASKED or IN_THE_SUITE,
    derandomize=not ASKED,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many inputs were tried."""
    if cases:
        line = f"{cases.total()} hostile inputs in {len(cases)} tests"
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a nightly run that tried too few."""
    if cases.total() < LEAST and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
