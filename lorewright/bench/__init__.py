"""Benchmarks: what can be written into an adapter on a given base, and what comes back.

Each is jobs, a task that turns a job into a record, and a summary of records. Sweeps run through
`scale`; tables and figures are drawn from records only.
"""
