"""Pages of tables: read with care, drawn as HTML and Markdown."""

from __future__ import annotations

import json

import pytest

from omnidecode import RequestError, _tables, report

PAGE = {
    "title": "T <b>",
    "heading": "five rows",
    "model": "m",
    "tables": [
        {"title": "One & two", "rows": [{"a": 1, "b": 0.12345, "c": "x|y<"}, {"a": 2000, "d": None, "b": True}]}
    ],
}


def test_pages_are_drawn() -> None:
    page = report.render(report.load(json.dumps(PAGE)))
    for said in ("T &lt;b&gt;", "m: five rows", "One &amp; two", "2,000", "0.1235", "x|y&lt;", "yes"):
        assert said in page, said
    assert "<b>" not in page.replace("<body", "")
    drawn = _tables.markdown(_tables.read(PAGE))
    assert drawn.splitlines()[2:] == [
        "| a | b | c | d |",
        "| --- | --- | --- | --- |",
        "| 1 | 0.1235 | x\\|y< |  |",
        "| 2,000 | yes |  |  |",
    ]


@pytest.mark.parametrize(
    "tables",
    [1, [1], [{"title": 3, "rows": []}], [{"rows": 5}], [{"rows": [1]}], [{"rows": [{"a": [1]}]}]],
)
def test_what_is_none_is_refused(tables: object) -> None:
    with pytest.raises(RequestError, match="expected"):
        report.load(json.dumps({"tables": tables}))
    with pytest.raises(RequestError, match="expected"):
        report.load(json.dumps({**PAGE, "heading": 3}))
