"""What a rank holds: the Parametric Memory Law, calibration of a base, plans of writes."""
