# SPDX-License-Identifier: Apache-2.0
"""DICOM images: header, geometry, pixels, and the display transform that a viewer applies."""
