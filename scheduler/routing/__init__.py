"""Which model serves a request, and how: rules in, route out; pure.

rules.py   what a rule says: a pattern of the model's name, conditions, targets, fallback, overrides
index.py   the rules that a request may match, found without trying them all
choice.py  the first rule that matches, and the target that it draws
decision.py  what is recorded of a decision, so that it can be explained and tried again
trial.py   what a set of rules would do, step by step, and what it would change

Rules come from SQL (scheduler/rule_record.py) as one versioned list, first match wins; without a match the model asked
for is served.
"""
