"""The command line: wiring, and errors in the user's vocabulary.

Read `main` (commands), `lightning_cli` (fit, validate, test, predict), `run_dir` (which folder a command uses),
`checkpoints` and `messages` (mistakes in settings, explained in one line).

Rule: may import everything; nothing imports it.
"""
