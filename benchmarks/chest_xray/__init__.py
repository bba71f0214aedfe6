# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals of real chest radiographs (normal, pneumonia): the tables the bundle's trainings read."""
