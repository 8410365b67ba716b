"""Learning from what is better: from pairs of answers, from judged answers, and from rewards.

config         the settings of each way
likelihoods    what is known of some answers, and what a loss makes of that
dpo, kto, orpo, bradley_terry      losses, with their derivatives
grpo, ppo      losses of answers that were sampled, and their advantages
answers        pairs and judged answers as passes
reference      what the model makes of answers without the adapter
learner        a loss of answers, made from the gradients of tokens
reward_model   a model that says how good a text is
rewards        functions, patterns and models as rewards
sampling       answers of the model as it is at the moment
policy         batches of answers that are sampled while a model learns
run            from a model and files to an adapter

All losses are functions of the negative log-likelihoods of tokens, and of hidden states: the weights of tokens in the
backward pass are the derivatives by these, so no loss needs a kernel of its own.
"""
