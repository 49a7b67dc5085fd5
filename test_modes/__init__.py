"""What test_solver.py does: one file per --test_mode, and what these files use.

A mode has `run(job)`, which returns the files that it saved. Its flags stand in flags.py.
"""
