"""Figures and one HTML page, made from CSV rows and from nothing else; needs the extra `trisparse[plot]`."""
