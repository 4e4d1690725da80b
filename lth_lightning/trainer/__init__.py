"""Everything that touches Lightning's internals: many networks in one fit, each as if it had its own fit.

Read `refusals` (what is not supported), `lengths` and `fit` (steps, epochs, loaders), `restart` (resets everything for
the next network, by `new_optimizers`, `schedules`, `trainables`, `metric_states` and `callback_states`; `watch` and
`contents` detect what is not reset), `resume` (saves and restores a point between two batches, with `module_state`;
`lost_attributes` names what it does not restore), `last_checkpoint`, `evaluation`, `processes`, `sub_runs` (one
TensorBoard folder per round), `bars`, `fast_step`, `memory` and `threads` (one fit at a time). README.md lists what is
supported and what is refused.

Rule: only this package uses Lightning names that begin with an underscore.
"""
