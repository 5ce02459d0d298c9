"""Tables on the terminal."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def make_table(
    columns: Iterable[str], rows: Iterable[Sequence[str]], left: Sequence[str], title: str, caption: str = ""
) -> Table:
    """Return a table of numbers, which stand on the right, but for the columns named in ``left``."""
    made = Table(title=title, caption=caption or None)
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if column in left else "right", overflow="fold", no_wrap=index == 0)
    for row in rows:
        made.add_row(*row)
    return made


def show(*tables: Table) -> None:
    """Print tables; 110 columns wide where stdout is no terminal, of which rich would make 80."""
    Console(width=None if sys.stdout.isatty() else 110).print(*tables)
