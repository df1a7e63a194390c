"""How fast a step of training is: cases, their measurement, and another code to compare with."""
