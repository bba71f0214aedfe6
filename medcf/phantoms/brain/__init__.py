# SPDX-License-Identifier: Apache-2.0
"""Brains in 3D T1-weighted MRI."""
