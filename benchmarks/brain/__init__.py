# SPDX-License-Identifier: Apache-2.0
"""ControlCG on 3D brains: the table with ground truth, augmentation, real volumes."""
