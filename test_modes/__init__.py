"""What test_solver.py does: one file per --test_mode, and what these files use.

A mode has FLAGS, the flags that only some modes have; `add_flags`, if no other file adds them; and
`run(job)`, which returns the files that it saved.
"""
