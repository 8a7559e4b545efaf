"""gnuplot: ``brokerfl export RUN | python to_gnuplot.py > run.dat``; each number is a data set of its own."""

import sys

from points import points

found = [*points(sys.stdin)]
for number in dict.fromkeys(name for _, name, _ in found):
    print(f'"{number}"', *(f"{step} {value}" for step, name, value in found if name == number), sep="\n", end="\n\n\n")
