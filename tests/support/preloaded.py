"""What every training process of the tests would do anew, done once in the fork server that they come from."""

import io

from matplotlib.figure import Figure

from gm_train.run.provenance import packages

figure = Figure()
figure.subplots().set_title("finds and reads the fonts")
figure.savefig(io.BytesIO())
packages()
