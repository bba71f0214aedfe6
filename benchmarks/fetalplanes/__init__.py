# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes make a classifier better, beside real images, for equally many gradient steps?"""
