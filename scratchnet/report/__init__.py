"""A run as one page of HTML: its curves, mistakes, filters, feature maps, where it looks, how to repeat it.

=============== =========================================================================
``report.py``   reads a run and its data, and writes the page
``sections.py`` the page's sections: each shows something, and says how to read it
``charts.py``   curves, drawn by matplotlib (the extra ``plot``) as SVG
``output.py``   checks early that a page or a figure can be written
``page.py``     HTML: the frame, its style, tables, and images embedded in the page
=============== =========================================================================
"""

from scratchnet.report.report import RunReport

__all__ = ["RunReport"]
