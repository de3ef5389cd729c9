"""Tables as text, and figures as people read them in a table."""

from sortyard.reports.figures import Table

MISSING = "-"


def text_table(table: Table) -> str:
    """Lay a table out in columns: the first to the left, the others to the right."""
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    lines = [
        "  ".join(_placed(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([table.caption, *(line.rstrip() for line in lines)])


def seconds_text(seconds: float | None) -> str:
    """Write seconds with three digits: 1.23 ms, 12.3 s."""
    if seconds is None:
        return MISSING
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def megabytes_text(num_bytes: float | None) -> str:
    """Write bytes as megabytes (10^6)."""
    if num_bytes is None:
        return MISSING
    return f"{num_bytes / 1e6:,.0f}" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.1f}"


def times_text(ratio: float | None) -> str:
    """Write how many times faster: 0.52x, 12.3x."""
    return MISSING if ratio is None else f"{ratio:.3g}x"


def number_text(value: float | None, *, digits: int = 2) -> str:
    """Write a number with a fixed count of decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


def length_text(length: int) -> str:
    """Write a length: 512, 16k."""
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def _placed(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
