# SPDX-License-Identifier: Apache-2.0
"""Benchmark of VALD-MD: counterfactuals of chest radiographs by text, on phantoms with paired truth."""
