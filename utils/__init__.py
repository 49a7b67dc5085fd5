"""What several scripts share; one file per job."""
