"""The type of a label for each cell."""

import numpy as np
import numpy.typing as npt

#: object (n_cells,), None where a cell has no label.
Labels = npt.NDArray[np.object_]
