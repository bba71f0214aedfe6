# SPDX-License-Identifier: Apache-2.0
"""DICOM images: their header, where they lie, their pixels and what a viewer shows of them."""
