# SPDX-License-Identifier: Apache-2.0
"""Trainers, evaluators and their handlers, and the folder of a run."""
