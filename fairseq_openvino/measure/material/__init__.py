"""Models and clips to measure and to test with, made here and nowhere else."""
