"""Judges: scores, fidelity, agreement of explanations, faithfulness, plausibility, speed."""
