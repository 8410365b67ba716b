"""Training: small weights beside a frozen model, or all of a small model.

Gradients come from the graph (`edgellm.graph.backward`). Here is the rest of a run: data, settings, the optimizer and
its schedule, the loop with its checkpoints, and what is written beside the result.
"""
