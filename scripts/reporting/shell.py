"""What every page has: its head, its style, and that it is written whole or not at all."""

import argparse
import os
import sys
from html import escape
from pathlib import Path

from .results import ReportError


def page(title, header, sections):
    """sections: [(heading, HTML)], those without HTML left out."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    body = "".join(f"<section><h2>{heading}</h2>{html}</section>\n" for heading, html in sections if html)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><p class="title">{escape(title)}</p>{header}</header>
{body}</main>
</body>
</html>
"""


def write(target, text):
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)


def main(description, name, page):
    """A program PROGRAM DIR that writes DIR/name, the HTML that page(DIR) returns. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder = parser.parse_args().folder
    try:
        write(folder / name, page(folder))
    except (ReportError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except (KeyError, IndexError, TypeError) as error:
        print(f"{parser.prog}: a log in {folder} is not what training writes: {error!r}", file=sys.stderr)
        return 1
    print(folder / name)
    return 0
