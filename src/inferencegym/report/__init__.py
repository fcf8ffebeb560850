"""How results look on paper and on screen: one palette, one style, one kind of page and of chart, for every report and for the dashboard.

Knows no result of ours: whoever writes a report hands over numbers and words. Units stand in the labels that it is handed.
"""
