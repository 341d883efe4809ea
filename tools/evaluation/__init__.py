"""Accuracy under a KV budget, measured with the engine: policies, budgets, questions, intervals and reports."""
