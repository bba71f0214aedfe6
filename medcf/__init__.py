# SPDX-License-Identifier: Apache-2.0
"""medcf: how would this study look if it were another class?

Diffusion counterfactuals for medical images, as a plugin ecosystem on MONAI. Importing this package loads nothing
heavy; import the room you need, for example ``from medcf.inferers import DiffICEInferer``.
"""

__all__ = ["__version__"]
__version__ = "0.1.0"
