"""All that touches Lightning's insides: many networks in one fit, each as if it had a fit of its own.

Read `fit` (lengths, steps, loaders), `restart` (everything new for the next network: `new_optimizers`, `trainables`,
`callback_states`; `watch` and `contents` find out what is not), `resume` (a place between two
batches, saved whole), `evaluation`, `processes`, `sub_runs` (a TensorBoard folder a network), `fast_step` and `memory`.

Rule: only this room uses names of Lightning that begin with an underscore.
"""
