# SPDX-License-Identifier: Apache-2.0
"""Training on MONAI and Ignite: handlers, state, losses, datasets."""
