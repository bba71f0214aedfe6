# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE on real fetal ultrasound: the tables of the training configs, and what the counterfactuals are worth."""
