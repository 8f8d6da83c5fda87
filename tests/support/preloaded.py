"""Slow preparations of every training process of the tests, done once in the fork server that starts them."""

import gc
import io

from matplotlib.figure import Figure

from gm_train.run.provenance import packages

figure = Figure()
figure.subplots().set_title("finds and reads the fonts")
figure.savefig(io.BytesIO())
packages()

gc.freeze()
gc.enable()
