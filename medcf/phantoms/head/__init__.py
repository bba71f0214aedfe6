# SPDX-License-Identifier: Apache-2.0
"""Fetal heads in 2D ultrasound."""
