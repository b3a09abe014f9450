"""Many runs: the grid of tasks, students, methods and seeds, and what came of it."""
