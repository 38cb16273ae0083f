"""Experiments on real data, and what they share: grids of runs, tables, intervals."""
