"""The experiment: one `Trainer.fit` that trains, prunes, rewinds and repeats.

Read `plan` (which networks, in which order), `rewinding` (what a round passes to the next), `callback` (a fit, hook
by hook), `experiment` (a network, from its start to its row), `outcome` (what the callback tells of its fit); then
`epochs`, `recorder` with `metrics`, `checkpoint`, `settings`, `claim` (the folder), `fresh_weights` with
`same_distribution` (random_reinit), `apart` (controls in fits of their own), `rehearsal`, `provenance`, `divergence`
and `summary_curves`.

Rule: this package deals with rounds, tickets and rewinding. Code for Lightning's loops is in `trainer`.
"""
