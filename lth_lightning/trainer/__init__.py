"""All that touches Lightning's insides: many networks in one fit, each as if it had a fit of its own.

Read `refusals` (what cannot be right in one fit), `lengths` and `fit` (steps, epochs, loaders), `restart` (everything
new for the next network: `new_optimizers`, `trainables`, `callback_states`; `watch` and `contents` find out what is
not), `resume` (a place between two batches, saved whole), `evaluation`, `processes`, `sub_runs` (a TensorBoard folder
a network), `fast_step` and `memory`. README.md lists what works beside the lottery, and what is refused.

Rule: only this room uses names of Lightning that begin with an underscore.
"""
