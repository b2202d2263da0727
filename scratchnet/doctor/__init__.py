"""The doctor: a network's own numbers, and what they say about why it does not learn."""

from scratchnet.doctor.diagnosis import Diagnosis, Row, Verdict, read
from scratchnet.doctor.doctor import Doctor, diagnose

__all__ = ["Diagnosis", "Doctor", "Row", "Verdict", "diagnose", "read"]
