"Published tables with one cell changed: a verdict that is computed turns with them."


def put(table, row, column, mean):
    "A copy of a table with one mean changed."
    cell = (table["row"] == row) & (table["column"] == column)
    assert cell.sum() == 1
    return table.assign(mean=table["mean"].mask(cell, mean))


def holds(erratum): return [f.holds for f in erratum.findings]
