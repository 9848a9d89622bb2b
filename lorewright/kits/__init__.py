"""Kits: what a way of writing learns once for a base; their data, training and recall."""
