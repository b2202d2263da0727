"""A run as one page of HTML: its curves, mistakes, filters, feature maps, where it looks, how to repeat it.

=============== ===========================================================================
``contents.py`` reads a run and its data, and writes the page
``parts.py``    the page's parts: each shows something, and says how to read it
``charts.py``   curves, drawn by matplotlib (the extra ``plot``) as SVG
``output.py``   where a page or an image may be written
``page.py``     HTML: the frame, its style, tables, and images that lie in the page itself
=============== ===========================================================================
"""

from scratchnet.report.report import Report

__all__ = ["Report"]
