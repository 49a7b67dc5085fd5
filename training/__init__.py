"""What train_solver.py uses: batches, EMA, the optimizer, the log, previews, checkpoints to resume from, processes."""
