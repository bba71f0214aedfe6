# SPDX-License-Identifier: Apache-2.0
"""Results as DICOM: derived images, maps, reports; all of them say that they are synthetic."""

from medcf.dicom.job import Job
from medcf.dicom.marks import check_marks, save
from medcf.dicom.writer import DicomWriter

__all__ = ["DicomWriter", "Job", "check_marks", "save"]
