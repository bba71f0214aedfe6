# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals of real chest radiographs (normal, pneumonia): tables for the bundle's trainings."""
