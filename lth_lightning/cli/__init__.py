"""The command line: wiring, and errors in the user's vocabulary.

Read `main` (commands), `arguments` and `known_settings` (the command line before Lightning is loaded), `lightning_cli`
(fit, validate, test, predict), `parts` (modules and data of the user's own), `run_dir` (which folder a command uses),
`checkpoints` and `messages` (mistakes in settings, explained in one line).

Rule: may import everything; nothing imports it.
"""
