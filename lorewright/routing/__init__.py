"""Which memory a question is for, with what probability, and who answers it."""
