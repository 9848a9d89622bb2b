"""Figures of records, light and dark, as SVG and PNG."""
