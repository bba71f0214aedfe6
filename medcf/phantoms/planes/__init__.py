# SPDX-License-Identifier: Apache-2.0
"""Planes of fetal ultrasound examinations, as two sites with different scanners show them."""
