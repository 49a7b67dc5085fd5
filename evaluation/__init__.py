"""What test_solver.py uses: numbers and their features, pairs to interpolate, a folder of samples."""
