"""Whether knowledge is recalled: traces, verdicts with controls, evidence, diagnosis."""
