"""Write the reference pages that are made from the code, and the tables between marks in other pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from fettle.api.generated import write
from tools.docs import commands, markdown, metrics, settings, task_metrics, values

ROOT = Path(__file__).parents[2]
REFERENCE = Path("docs/reference")
CHART = Path("charts/fettle")


def pages(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Each file, relative to the repository, with what it must hold."""
    table = values.table((root / CHART / "values.yaml").read_text(encoding="utf-8"))
    yield REFERENCE / "cli.md", commands.page()
    yield REFERENCE / "settings.md", settings.page(table)
    yield REFERENCE / "metrics.md", metrics.page()
    for path, marks, wanted in (
        (CHART / "README.md", values.MARKS, table),
        (Path("docs/guides/model-and-data.md"), task_metrics.MARKS, task_metrics.rows()),
    ):
        yield path, markdown.between(marks, (root / path).read_text(encoding="utf-8"), wanted)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit status 1 if a file differs.")
def main(check: bool) -> None:
    """Write docs/reference/{cli,settings,metrics}.md, the chart's table of values and the guide's table of metrics."""
    write([(ROOT / path, text) for path, text in pages()], check=check)


if __name__ == "__main__":
    main()
