"""flower-digits: a Flower app in numpy."""
