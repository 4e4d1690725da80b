"""The command line: wiring, and errors in the user's words.

Read `main` (commands), `lightning_cli` (fit, validate, test, predict), `run_dir` (which folder is meant), `checkpoints`
and `messages` (what is wrong with a setting, in one line).

Rule: imports everything, is imported by nothing.
"""
