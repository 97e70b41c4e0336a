"""The count of damaged files in the summary of a test run."""

from tests.mutations import tally


def pytest_terminal_summary(terminalreporter):
    for name, ends in sorted(tally.items()):
        counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
        terminalreporter.write_line(f"damaged files, {name}: {sum(ends.values())} ({counts})")
